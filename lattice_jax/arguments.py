"""Types of a script's arguments, for argparse, whose errors say what is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def positive(text: str) -> int:
  """A whole number above zero."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text} must be a positive whole number.")
  return int(text)


def positives(text: str) -> tuple[int, ...]:
  """Several, separated by commas."""
  return tuple(positive(part) for part in text.split(","))


def some_of(*allowed: str) -> Callable[[str], tuple[str, ...]]:
  """Names out of these, separated by commas."""
  def parse(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
      if name not in allowed:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}.")
    return names

  return parse
