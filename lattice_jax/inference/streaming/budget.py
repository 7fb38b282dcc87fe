"""Which layers stay in memory, how many buffers the others share, and a count of every byte that is held."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lattice_jax.shown import shown_bytes


@dataclass(frozen=True)
class Sizes:
  """Bytes. layers: of each as the file stores it. apart: of each with a byte for every 4-bit code; as in `layers` where
  it has none. codes: room in which layers are taken apart when they are used; 0 where none has 4-bit codes.

  needs: what must fit beside the layers, by name.
  """

  layers: Sequence[int]
  apart: Sequence[int]
  codes: int
  needs: Mapping[str, int]


@dataclass(frozen=True)
class Plan:
  """How a budget is spent.

  pinned: the layers that stay once they have been read; apart: those of them that stay with a byte for each code.
  num_buffers, buffer_bytes: of the buffers that all others pass through. streamed_bytes: of the layers that each pass
  reads again. code_bytes: `Sizes.codes`, or 0 if nothing is taken apart any more.
  """

  pinned: frozenset[int]
  apart: frozenset[int]
  num_buffers: int
  buffer_bytes: int
  streamed_bytes: int
  code_bytes: int

  @property
  def has_codes(self) -> bool:
    """Whether some layers are taken apart when they are used."""
    return self.code_bytes > 0


def make_plan(budget: int, sizes: Sizes, *, depth: int) -> Plan:
  """Pins as many layers as fit beside what is needed and depth + 1 buffers, or all of them without buffers.

  What is left then lets some of them stay taken apart, which saves time at every use.

  depth: layers that are read ahead of the one that is computed.

  Raises:
    ValueError: not even the buffers fit.
  """
  num_layers, left = len(sizes.layers), budget - sum(sizes.needs.values())
  everything = frozenset(range(num_layers))
  if sum(sizes.apart) <= left:
    return Plan(everything, everything, num_buffers=0, buffer_bytes=0, streamed_bytes=0, code_bytes=0)
  left -= sizes.codes
  pinned, num_buffers, buffer_bytes = everything, 0, 0
  if sum(sizes.layers) > left:
    num_buffers, buffer_bytes = min(depth + 1, num_layers), max(sizes.layers)
    left -= num_buffers * buffer_bytes
    if left < 0:
      raise ValueError(_too_small(budget, sizes, num_buffers))
    pinned = max((spread(num, num_layers) for num in range(num_layers) if _total(
      sizes.layers, spread(num, num_layers)) <= left), key=len)
  left -= _total(sizes.layers, pinned)
  apart = set()
  for layer in sorted(pinned):
    more = sizes.apart[layer] - sizes.layers[layer]
    if more <= left:
      apart.add(layer)
      left -= more
  return Plan(
    pinned=pinned, apart=frozenset(apart), num_buffers=num_buffers, buffer_bytes=buffer_bytes,
    streamed_bytes=_total(sizes.layers, everything - pinned), code_bytes=sizes.codes)


def _total(sizes: Sequence[int], layers: frozenset[int]) -> int:
  return sum(sizes[layer] for layer in layers)


def _too_small(budget: int, sizes: Sizes, num_buffers: int) -> str:
  least = least_budget(sizes, 0, depth=num_buffers - 1)
  needs = {**sizes.needs, "room for taking 4-bit codes apart": sizes.codes}
  parts = ", ".join(f"{shown_bytes(size)} of {what}" for what, size in needs.items() if size)
  return (
    f"a budget of {shown_bytes(budget)} is too small: {parts} and {num_buffers} layers of "
    f"{shown_bytes(max(sizes.layers))} need {shown_bytes(least)}; give at least {least:,} bytes.")


def least_budget(sizes: Sizes, num_pinned: int, *, depth: int) -> int:
  """The least budget in which so many layers stay."""
  num_layers, everything = len(sizes.layers), sum(sizes.layers) + sizes.codes
  buffers = min(depth + 1, num_layers) * max(sizes.layers)
  some = _total(sizes.layers, spread(num_pinned, num_layers)) + buffers + sizes.codes
  layers = min(everything, sum(sizes.apart)) if num_pinned == num_layers else min(some, everything, sum(sizes.apart))
  return sum(sizes.needs.values()) + layers


def spread(num: int, of: int) -> frozenset[int]:
  """`num` of `of` layers, evenly spaced, so that each layer that is read can hide behind one that stays."""
  return frozenset(index * of // num for index in range(num))


class Pool:
  """Counts bytes before they are allocated; threads share it. peak: the most that were held at a time."""

  def __init__(self, budget: int):
    self.budget, self.used, self.peak = budget, 0, 0
    self._lock = threading.Lock()

  def take(self, num_bytes: int, what: str) -> None:
    """Raises ValueError if the budget does not have so many bytes left."""
    with self._lock:
      if self.used + num_bytes > self.budget:
        raise ValueError(
          f"{shown_bytes(num_bytes)} of {what} do not fit: {shown_bytes(self.used)} of the budget of "
          f"{shown_bytes(self.budget)} are in use; give at least {self.used + num_bytes:,} bytes.")
      self.used += num_bytes
      self.peak = max(self.peak, self.used)

  def give(self, num_bytes: int) -> None:
    """Takes back the count of bytes that are held no longer."""
    with self._lock:
      self.used -= num_bytes
