"""Domains: the values that a config field, a flag or a script's argument may have, all checked by one mechanism.

A domain is declared together with its value: config fields through `lattice_jax.fields`, flags and arguments of scripts
through `lattice_jax.commands`.
"""

from __future__ import annotations

import abc
import ast
import difflib
import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from lattice_jax.shown import shown

# Arrays, counters and random keys have 32 bits: a larger number would be truncated, and a smaller one would become 0.
LARGEST_WHOLE = 2**31 - 1
LARGEST_SEED = 2**32 - 1  # jax.random.key uses the lower 32 bits of its seed
_LARGEST_FLOAT, _SMALLEST_FLOAT = 3.4028234e38, 1.1754944e-38


class Domain(abc.ABC):
  """A set of allowed values. `convert` and `parse` raise ValueError, whose message continues after the value."""

  kind: type

  @abc.abstractmethod
  def convert(self, value: Any) -> Any:
    """The value converted to `kind`."""

  def parse(self, text: str) -> Any:
    """The value that this text on a command line means."""
    return self.convert(text)

  @abc.abstractmethod
  def describe(self) -> str:
    """What is allowed, in a few words."""


@dataclass(frozen=True)
class Number(Domain):
  """Finite numbers from low to high, without the bounds that are open, and the numbers `also`."""

  kind: type = float
  low: float | None = None
  high: float | None = None
  is_low_open: bool = False
  is_high_open: bool = False
  also: tuple[int, ...] = ()

  def convert(self, value: Any) -> Any:
    if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value) if abs(value) < 10**300 else (math.inf if value > 0 else -math.inf)
    if not isinstance(value, self.kind) or isinstance(value, bool):
      raise ValueError(f"must be of type {self.kind.__name__}, not {type(value).__name__}.")
    if value in self.also:
      return value
    if not self._is_inside(value):
      raise ValueError(f"must {self._rule()}.")
    largest, smallest = (_LARGEST_FLOAT, _SMALLEST_FLOAT) if self.kind is float else (LARGEST_WHOLE, 0)
    if self.high is None and abs(value) > largest:
      raise ValueError(f"is too large: must be at most {largest:{'.3g' if self.kind is float else 'd'}}, "
                       "as numbers have 32 bits.")
    if value and abs(value) < smallest:
      raise ValueError(f"is too small: must be at least {smallest:.3g} or 0, as numbers have 32 bits."
                       if self._is_inside(0.0) else f"is too small: must be at least {smallest:.3g}.")
    return value

  def parse(self, text: str) -> Any:
    try:
      value = self.kind(text)
    except ValueError as error:
      raise ValueError(f"must be a {'whole ' if self.kind is int else ''}number.") from error
    return self.convert(value)

  def describe(self) -> str:
    noun = "whole number" if self.kind is int else "number"
    also = "".join(f", or {value}" for value in self.also)
    if self.high is None and self.low is not None:
      return f"{noun} {'>' if self.is_low_open else '≥'} {self.low:g}{also}"
    return noun + (f" in {self._interval()}" if self.high is not None else "") + also

  def _is_inside(self, value: float) -> bool:
    if self.kind is float and not math.isfinite(value):
      return False
    above = self.low is None or (value > self.low if self.is_low_open else value >= self.low)
    below = self.high is None or (value < self.high if self.is_high_open else value <= self.high)
    return above and below

  def _rule(self) -> str:
    also = "".join(f", or {value}" for value in self.also)
    finite = " and finite" if self.kind is float else ""
    if self.high is not None:
      return f"lie in {self._interval()}{also}"
    if self.low is None:
      return "be finite"
    if (self.low, self.is_low_open) == (0, True) or (self.kind is int and self.low == 1 and not self.is_low_open):
      return f"be positive{finite}{also}"
    return f"be {self.low:g} or more{finite}{also}"

  def _interval(self) -> str:
    low, high = (f"{bound:d}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.low, self.high))
    return f"{'(' if self.is_low_open else '['}{low}, {high}{')' if self.is_high_open else ']'}"


class AnyText(Domain):
  """Text of any number of lines, such as a prompt."""

  kind = str

  def convert(self, value: Any) -> str:
    if not isinstance(value, str):
      raise ValueError(f"must be of type str, not {type(value).__name__}.")
    return value

  def describe(self) -> str:
    return "any text"


@dataclass(frozen=True)
class Text(AnyText):
  """A line of text; if `allowed` is not empty, one of these."""

  allowed: tuple[str, ...] = ()

  def convert(self, value: Any) -> str:
    value = super().convert(value)
    if self.allowed and value not in self.allowed:
      raise ValueError(f"is not one of {', '.join(self.allowed)}.{did_you_mean(value, self.allowed)}")
    if not value.isprintable():
      raise ValueError("must be a text of one line.")
    return value

  def describe(self) -> str:
    return " | ".join(self.allowed) if self.allowed else "text of one line"


@dataclass(frozen=True)
class Place(Text):
  """A file or folder on this machine; ~ is the home folder."""

  def convert(self, value: Any) -> str:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", super().convert(value))
    if scheme:
      raise ValueError(f"is not on this machine: {scheme[1]}:// is not supported; give a path in the file system, for "
                       "example of a mounted bucket.")
    return os.path.expanduser(value)

  def describe(self) -> str:
    return "file or folder on this machine"


@dataclass(frozen=True)
class Switch(Domain):
  kind: type = bool

  def convert(self, value: Any) -> bool:
    if not isinstance(value, bool):
      raise ValueError(f"must be of type bool, not {type(value).__name__}.")
    return value

  def parse(self, text: str) -> bool:
    words = {"true": True, "false": False, "t": True, "f": False, "1": True, "0": False, "yes": True, "no": False}
    if text.lower() not in words:
      raise ValueError("must be true or false.")
    return words[text.lower()]

  def describe(self) -> str:
    return "true or false"


@dataclass(frozen=True)
class Names(Domain):
  """A list of names, all from `allowed` if that is not empty; on the command line a,b or ('a', 'b')."""

  allowed: tuple[str, ...] = ()
  fewest: int = 0
  kind: type = tuple

  def convert(self, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)) or not all(isinstance(item, str) for item in value):
      raise ValueError("must be a list of names.")
    names = tuple(name for item in value for name in item.split(","))
    for name in names:
      if self.allowed and name not in self.allowed:
        raise ValueError(f"names {name!r}; known are {', '.join(self.allowed)}.{did_you_mean(name, self.allowed)}")
    if len(names) < self.fewest:
      raise ValueError(f"must hold at least {self.fewest} name{'s' if self.fewest > 1 else ''}.")
    return names

  def parse(self, text: str) -> tuple[str, ...]:
    return self.convert(literal(text, "must be names with commas between them, as in a,b.")
                        if text[:1] in ("(", "[") else tuple(filter(None, text.split(","))))

  def describe(self) -> str:
    return f"names out of {', '.join(self.allowed)}" if self.allowed else "names"


@dataclass(frozen=True)
class Numbers(Domain):
  """A list of whole numbers, none below `low`; on the command line 1,2 or (1, 2)."""

  low: int = 0
  fewest: int = 0
  kind: type = tuple

  def convert(self, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(type(item) is int for item in value):
      raise ValueError("must be a list of whole numbers.")
    if len(value) < self.fewest:
      raise ValueError(f"must hold at least {self.fewest} number{'s' if self.fewest > 1 else ''}.")
    for item in value:
      if not self.low <= item <= LARGEST_WHOLE:
        raise ValueError(f"holds {shown(item)}, and its numbers must lie in [{self.low}, {LARGEST_WHOLE}].")
    return tuple(value)

  def parse(self, text: str) -> tuple[int, ...]:
    problem = "must be whole numbers with commas between them, as in 64,128."
    value = literal(text, problem) if text else ()
    return self.convert(value if isinstance(value, (tuple, list)) else (value,))

  def describe(self) -> str:
    return f"whole numbers ≥ {self.low}"


@dataclass(frozen=True)
class Pairs(Domain):
  """A list of pairs of names; on the command line (('a', 'b'), ('c', 'd'))."""

  kind: type = tuple

  def convert(self, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, (tuple, list)):
      raise ValueError("must be a list of pairs of names.")
    for item in value:
      if not (isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item)):
        raise ValueError("must be a list of groups of 2 names each.")
    return tuple(tuple(item) for item in value)

  def parse(self, text: str) -> tuple[tuple[str, str], ...]:
    return self.convert(literal(text, "must be pairs of names, as in (('a', 'b'), ('c', 'd'))."))

  def describe(self) -> str:
    return "pairs of names"


def literal(text: str, otherwise: str) -> Any:
  """The value of a Python literal. Raises ValueError with the message `otherwise` for any other text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
    raise ValueError(otherwise) from error


def did_you_mean(given: str, allowed: Collection[str], *, quote: Callable[[str], str] = repr) -> str:
  """The end of an error message: the most similar of the allowed names, or nothing if none is similar."""
  close = difflib.get_close_matches(given, list(allowed), n=1)
  return f" Did you mean {quote(close[0])}?" if close else ""


SEED = Number(int, 0, LARGEST_SEED)
TEMPERATURE, TOP_K, TOP_P = Number(float, 0), Number(int, 0), Number(float, 0, 1, is_low_open=True)


def checked(domain: Domain, name: str, value: Any) -> Any:
  """The converted value. Raises ValueError with a sentence that begins with `name`."""
  try:
    return domain.convert(value)
  except ValueError as error:
    raise ValueError(f"{name}={shown(value)} {error}") from error


def short(text: str, length: int = 80) -> str:
  return text if len(text) <= length else text[:length] + "…"
