"""What the policy "sep" keeps, one row at a time: the definition that the cache is held against."""

from __future__ import annotations

from collections.abc import Sequence


def kept_positions(is_separator_T: Sequence[bool], *, sinks: int, lag: int, keep: int) -> list[int]:
  """Positions that stay of a row's tokens, ascending."""
  num = len(is_separator_T)
  compressed = max(0, (num - sinks) // lag - 1)
  kept = set(range(min(sinks, num))) | set(range(sinks + compressed * lag, num)) if compressed else set(range(num))
  for start in range(sinks, sinks + compressed * lag, lag):
    newest_first = range(start + lag - 1, start - 1, -1)
    separators = [place for place in newest_first if is_separator_T[place]]
    others = [place for place in newest_first if not is_separator_T[place]]
    kept.update([*separators, *others][:keep])
  return sorted(kept)
