"""The rules of the section data.anchors as they are written. Needs no JAX."""

from __future__ import annotations

from typing import NamedTuple

from lattice_jax.domains import did_you_mean

ANCHOR = "<AC>"  # the token that `data.anchors.insert` puts into texts

_RULES = ("none", "punctuation", "line", "every:N", "ids:N,N", "token:TEXT")


class Rule(NamedTuple):
  """A rule as written in the config. every: of "every:N". ids: of "ids:N,N". token: of "token:TEXT"."""

  name: str
  every: int = 0
  ids: tuple[int, ...] = ()
  token: str = ""


def parse_rule(text: str, field: str = "data.anchors.rule") -> Rule:
  """Raises ValueError, one sentence that begins with `field`, for what is no rule."""
  name, _, value = text.partition(":")
  if name in ("none", "punctuation", "line") and text == name:
    return Rule(name)
  if name == "every" and value.isascii() and value.isdigit() and 0 < int(value) < 2**31:
    return Rule(name, every=int(value))
  numbers = value.split(",")
  if name == "ids" and all(number.isascii() and number.isdigit() and int(number) < 2**31 for number in numbers):
    return Rule(name, ids=tuple(int(number) for number in numbers))
  if name == "token" and value:
    return Rule(name, token=value)
  raise ValueError(
    f"{field}={text!r} is none of {', '.join(_RULES)}; write one of them, as in every:16 or ids:13,29889."
    f"{did_you_mean(text, ('none', 'punctuation', 'line', 'every:16', 'ids:13', 'token:<AC>'))}")


def parse_insert(text: str) -> Rule:
  """Where `data.anchors.insert` puts the added token. Raises ValueError for what is not none, sentence or every:N."""
  if text in ("none", "sentence"):
    return Rule(text)
  if text.startswith("every:"):
    return parse_rule(text, "data.anchors.insert")
  raise ValueError(
    f"data.anchors.insert={text!r} is none of none, sentence, every:N; write one of them, as in every:64."
    f"{did_you_mean(text, ('none', 'sentence', 'every:64'))}")


def most_protected(copies: int, apart: int, length: int) -> int:
  """How many of `length` tokens are protected at most, where runs of `copies` anchors have `apart` tokens between them.

  All of a run are but the last, and all of one that the start cuts, whose first tokens are not known. A document that
  starts behind the first of a run is therefore the worst: it has such tokens in each of its parts of apart + copies.
  """
  return min(length, (copies - 1) * -(-length // (apart + copies)))
