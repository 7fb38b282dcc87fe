"""Numbers of bytes as a flag or an argument gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lattice_jax.domains import Domain

_LARGEST = 2**60


@dataclass(frozen=True)
class ByteSize(Domain):
  """A positive number of bytes; on the command line also with a unit, as in 200MB (a million each) or 1.5GiB (2^30)."""

  kind: type = int

  def convert(self, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
      raise ValueError(f"must be of type int, not {type(value).__name__}.")
    if not 0 < value <= _LARGEST:
      raise ValueError("must be a number of bytes from 1 to 2^60.")
    return value

  def parse(self, text: str) -> int:
    match = re.fullmatch(r"(\d{1,20}(?:\.\d{1,20})?) ?([A-Za-z]*)", text)
    units = {"": 1, "B": 1} | {
      f"{prefix}{end}": base**power for end, base in (("B", 1000), ("iB", 1024))
      for power, prefix in enumerate("KMGT", start=1)}
    unit = match and next((size for name, size in units.items() if name.lower() == match[2].lower()), None)
    if not unit or (unit == 1 and "." in text):
      raise ValueError("must be a number of bytes with or without a unit, as in 200MB or 1.5GiB.")
    return self.convert(int(Fraction(match[1]) * unit))

  def describe(self) -> str:
    return "bytes, as in 200MB or 1.5GiB"
