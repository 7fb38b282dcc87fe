"""Values as sentences show them: on one line, short, and without the names and addresses of Python objects."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_MAX_LEN = 60
_MAX_ITEMS = 4


def shown(value: Any) -> str:
  """Numbers, strings and lists as Python writes them, without the middle of long ones; an object is «an object»."""
  if hasattr(value, "tolist") and getattr(value, "ndim", 0):  # a NumPy array; --help does not import NumPy
    value = value[:_MAX_ITEMS + 1].tolist()
  if isinstance(value, dict):
    return "an object"
  if isinstance(value, list):
    inside = [shown(item) if not isinstance(item, list) else "a list" for item in value[:_MAX_ITEMS]]
    return f"[{', '.join(inside)}{', …' if len(value) > _MAX_ITEMS else ''}]"
  if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_MAX_LEN:
    return f"a number of {int(math.log10(abs(value))) + 1} digits"
  text = " ".join(repr(value).split())
  if re.search(r"<[^<>]* at 0x[0-9a-f]+>", text):
    return f"({type(value).__name__})"
  return text if len(text) <= _MAX_LEN else f"{text[:_MAX_LEN // 2]} … {text[-_MAX_LEN // 3:]}"


def first_line(error: BaseException, limit: int = 200) -> str:
  """The start of an error's message."""
  text = " ".join(str(error).strip().split("\n")[0].split()) or type(error).__name__
  return text if len(text) <= limit else text[:limit] + "…"


def reason_of(error: BaseException) -> str:
  """`first_line` without its full stop, for use in brackets."""
  return first_line(error).rstrip(".")


def shown_bytes(number: float) -> str:
  """As in 98.4 MB, where MB is a million bytes."""
  if abs(number) < 1000:
    return f"{number:.0f} bytes"
  power = min(4, int(math.log10(abs(number))) // 3)
  value = number / 1000**power
  digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
  return f"{value:,.{digits}f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def shown_name(name: str) -> str:
  """The name itself, or `shown(name)` if it is empty, long or not printable on one line."""
  return name if name.isprintable() and 0 < len(name) <= _MAX_LEN else shown(name)


def as_json(value: Any) -> str:
  """The value as JSON."""
  return json.dumps(value, ensure_ascii=False)


def short_json(value: Any) -> str:
  """The start of the value's JSON; an array is «a list of numbers»."""
  try:
    text = as_json(value)
  except TypeError:
    text = "a list of numbers"
  return text if len(text) <= _MAX_LEN else text[:_MAX_LEN] + "…"
