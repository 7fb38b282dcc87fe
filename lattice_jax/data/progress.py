"""Progress reports of long work, as lines of text."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
_LINES = 20


class ProgressLines:
  """Reports a line after about every twentieth of the work, but not at its end."""

  def __init__(self, report: Report, what: str, total: int, unit: str):
    self._report = report
    self._what = what
    self._total = total
    self._unit = unit
    self._reported = 0

  def at(self, done: int) -> None:
    part = done * _LINES // self._total
    if self._reported < part < _LINES:
      self._reported = part
      self._report(f"  {self._what}: {done:,} of {self._total:,} {self._unit}")


def as_gigabytes(size: int) -> str:
  return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
