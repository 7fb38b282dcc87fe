"""Loss by position: where the position buckets start, and the figures of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.memories.registry import find_memory

_DEFAULT_UNIT = 64


@dataclass(frozen=True)
class PositionBucket:
  """Targets whose input token is at a position in [start, stop) of its document or window.

  bits_per_byte uses the bytes per token of the whole split, so that the buckets average to the total.
  """

  start: int
  stop: int
  tokens: int
  bits_per_byte: float


def bucket_starts(model: ModelConfig, longest: int) -> np.ndarray:
  """First positions of the buckets 0, L/2, L, 2L, 4L … below `longest`; L is the memory's `position_unit`, or 64."""
  units = [find_memory(name).position_unit for name in model.pattern]
  unit = next((unit(model) for unit in units if unit), _DEFAULT_UNIT)
  starts, edge = [0], max(unit // 2, 1)
  while edge < longest:
    starts.append(edge)
    edge *= 2
  return np.asarray(starts, np.int32)


def make_buckets(
  starts: np.ndarray, end: int, nats: np.ndarray, tokens: np.ndarray, bytes_per_token: float
) -> tuple[PositionBucket, ...]:
  """The non-empty buckets, from each one's sums of nats and tokens; `end` is one past the last target's position."""
  stops = [*starts[1:].tolist(), end]
  return tuple(
    PositionBucket(
      start=int(start), stop=min(stop, end), tokens=round(count),
      bits_per_byte=nat / count / np.log(2).item() / bytes_per_token)
    for start, stop, nat, count in zip(starts, stops, nats.tolist(), tokens.tolist(), strict=True) if count)
