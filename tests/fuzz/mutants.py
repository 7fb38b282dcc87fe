"""Damaged inputs, drawn without coverage: bytes changed, cut, moved and repeated, and JSON with other values in it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

ODD = (
  None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), "", "x", "\ud800", "\0", "a/../b", [], [1],
  [[]], {}, {"x": 1}, {"": {}})
_WORDS = (b"\0", b"\xff", b"\n", b"{", b"[", b"\"", b": ", b"- ", b"&a ", b"*a", b"!!int ", b"!!float ", b"!!bool ",
          b"!!timestamp ", b"!!set ", b"? ", b"1e999", b"-1", b"0x", b"\x00\x00\x00\x80",
          b"\xff\xff\xff\xff\xff\xff\xff\x7f")


def mutants(seeds: list[bytes], draw: random.Random, count: int) -> Iterator[bytes]:
  """So many inputs, each a seed with one to four changes."""
  for _ in range(count):
    data = draw.choice(seeds)
    for _ in range(draw.randint(1, 4)):
      data = data[:1] + mutant(data[1:], draw)
    yield data


def mutant(raw: bytes, draw: random.Random) -> bytes:
  """One change of a file's content."""
  if draw.random() < 0.7:
    changed = _json_mutant(raw, draw)
    if changed is not None:
      return changed
  return draw.choice((_flip, _cut, _insert, _number, _repeat, _drop))(raw, draw)


def _flip(raw: bytes, draw: random.Random) -> bytes:
  place = draw.randrange(len(raw) + 1)
  return raw[:place] + bytes([draw.randrange(256)]) + raw[place + 1:]


def _cut(raw: bytes, draw: random.Random) -> bytes:
  return raw[:draw.randrange(len(raw) + 1)]


def _insert(raw: bytes, draw: random.Random) -> bytes:
  place = draw.randrange(len(raw) + 1)
  return raw[:place] + draw.choice(_WORDS) + raw[place:]


def _number(raw: bytes, draw: random.Random) -> bytes:
  place, size = draw.randrange(len(raw) + 1), draw.choice((1, 2, 4, 8))
  value = draw.choice((0, 1, 2**(8 * size - 1) - 1, 2**(8 * size - 1), 2**(8 * size) - 1, draw.randrange(256)))
  return raw[:place] + value.to_bytes(size, "little") + raw[place + size:]


def _repeat(raw: bytes, draw: random.Random) -> bytes:
  start, stop = sorted(draw.randrange(len(raw) + 1) for _ in range(2))
  return raw[:stop] + raw[start:stop][:1024] + raw[stop:]


def _drop(raw: bytes, draw: random.Random) -> bytes:
  start = draw.randrange(len(raw) + 1)
  return raw[:start] + raw[start + draw.randint(1, 16):]


def _json_mutant(raw: bytes, draw: random.Random) -> bytes | None:
  """JSON or the first line of JSON Lines with a value replaced, left out or doubled; None for other content.

  A length of 8 bytes before the JSON, as in safetensors, is kept right.
  """
  for start in (0, 8):
    size = int.from_bytes(raw[:8], "little") if start else len(raw)
    try:
      content = json.loads(raw[start:start + size])
    except (ValueError, RecursionError):
      continue
    if isinstance(content, (dict, list)) and content:
      text = json.dumps(_changed(content, draw)).encode()
      return (len(text).to_bytes(8, "little") if start else b"") + text + raw[start + size:]
  return None


def _changed(content: Any, draw: random.Random) -> Any:
  """A copy in which one place, at a depth that is drawn, is another."""
  copy: Any = dict(content) if isinstance(content, dict) else list(content)
  keys = list(copy) if isinstance(copy, dict) else range(len(copy))
  if not keys:
    return draw.choice(ODD)
  key = draw.choice(keys)
  inner = copy[key]
  if isinstance(inner, str) and inner[:1] in ("{", "[") and draw.random() < 0.8:  # JSON within JSON
    try:
      copy[key] = json.dumps(_changed(json.loads(inner), draw))
      return copy
    except (ValueError, RecursionError, TypeError):
      pass
  if isinstance(inner, (dict, list)) and inner and draw.random() < 0.8:
    copy[key] = _changed(inner, draw)
  elif draw.random() < 0.2:
    del copy[key]
  elif isinstance(copy, dict) and draw.random() < 0.1:
    copy[f"{key}x"] = inner
  else:
    copy[key] = draw.choice(ODD)
  return copy
