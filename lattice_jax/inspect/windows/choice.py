"""Which window each head gets for a number of bytes: greedily by error, and the choices to compare that with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lattice_jax.memories.local.profile import Rows
from lattice_jax.ops.local import num_slots


@dataclass(frozen=True)
class Ladder:
  """rungs: windows, ascending, the whole document, 0, as the last. token_bytes: of a key and a value in one head.

  context: tokens of a document for which the cache has room, which a head that sees everything keeps.
  """

  rungs: tuple[int, ...]
  sinks: int
  context: int
  token_bytes: int

  def bytes_of(self, rung: int) -> int:
    """What one head with that window keeps of a row."""
    return num_slots(self.sinks, rung, self.context) * self.token_bytes

  def total(self, rows: Rows) -> int:
    return sum(self.bytes_of(rung) for row in rows for rung in row)


@dataclass(frozen=True)
class Step:
  """One head gets a larger window. gain: how much its error falls. added: bytes of a row. spent: bytes of all heads."""

  layer: int
  head: int
  before: int
  after: int
  gain: float
  added: int
  spent: int


def choose_windows(error_RLH: np.ndarray, ladder: Ladder, budget: int) -> tuple[Rows, list[Step]]:
  """Windows of [L][H] heads whose bytes are at most `budget`, and every step in which they grew.

  All begin at the smallest rung. Again and again the head and the higher rung, not only the next one, are taken for
  which the error falls most for each byte added, among those that still fit.

  Raises:
    ValueError: the smallest rung does not fit, or there is not one error for each rung.
  """
  if len(error_RLH) != len(ladder.rungs):
    raise ValueError(f"there are errors of {len(error_RLH)} rungs, and the ladder has {len(ladder.rungs)}; give both.")
  cost_R = np.array([ladder.bytes_of(rung) for rung in ladder.rungs])
  layers, heads = error_RLH.shape[1:]
  spent = int(cost_R[0]) * layers * heads
  if spent > budget:
    raise ValueError(
      f"{budget:,} bytes a row do not hold the smallest window, {ladder.rungs[0]}, of {layers * heads} heads, which "
      f"takes {spent:,}; allow more, or add a smaller rung.")
  at_LH, steps = np.zeros((layers, heads), int), []
  while True:
    gain_RLH = np.take_along_axis(error_RLH, at_LH[None], axis=0) - error_RLH
    added_RLH = cost_R[:, None, None] - cost_R[at_LH]
    is_open_RLH = (added_RLH > 0) & (added_RLH <= budget - spent) & (gain_RLH > 0)
    if not is_open_RLH.any():
      break
    rate_RLH = np.where(is_open_RLH, gain_RLH / np.maximum(added_RLH, 1), -np.inf)
    rung, layer, head = (int(n) for n in np.unravel_index(rate_RLH.argmax(), rate_RLH.shape))
    spent += int(added_RLH[rung, layer, head])
    steps.append(Step(
      layer, head, ladder.rungs[at_LH[layer, head]], ladder.rungs[rung], float(gain_RLH[rung, layer, head]),
      int(added_RLH[rung, layer, head]), spent))
    at_LH[layer, head] = rung
  return _rows(np.array(ladder.rungs)[at_LH]), steps


def keep_retrieval_heads(far_mass_LH: np.ndarray, ladder: Ladder, budget: int) -> Rows:
  """The whole document for as many heads as fit, those with the most attention beyond the smallest window.

  All others have the smallest window. Raises ValueError as `choose_windows`.
  """
  low, high = ladder.bytes_of(ladder.rungs[0]), ladder.bytes_of(ladder.rungs[-1])
  spare = budget - low * far_mass_LH.size
  if spare < 0:
    raise ValueError(
      f"{budget:,} bytes a row do not hold the smallest window, {ladder.rungs[0]}, of {far_mass_LH.size} heads; allow "
      "more, or add a smaller rung.")
  number = min(far_mass_LH.size, spare // (high - low)) if high > low else far_mass_LH.size
  window_N = np.full(far_mass_LH.size, ladder.rungs[0])
  window_N[np.argsort(-far_mass_LH, axis=None, kind="stable")[:number]] = ladder.rungs[-1]
  return _rows(window_N.reshape(far_mass_LH.shape))


def alike(window: int, layers: int, heads: int) -> Rows:
  """The same window for all heads."""
  return ((window,) * heads,) * layers


def _rows(window_LH: Sequence[Sequence[int]] | np.ndarray) -> Rows:
  return tuple(tuple(int(window) for window in row) for row in window_LH)
