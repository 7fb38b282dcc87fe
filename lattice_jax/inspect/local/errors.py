"""Relative error of attention's output at equal bytes, for every way to spend them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from lattice_jax.evaluation.bootstrap import interval_of_mean
from lattice_jax.inspect.local.arms import CLAIMS, PAIRS, SINKS, Arm, Heads
from lattice_jax.inspect.local.context import Context
from lattice_jax.inspect.local.stream import EVERY, Compared, exact_outputs, positions, relative_errors
from lattice_jax.inspect.local.texts import read_layers

_POSITIONS = 256  # tokens of the first range of positions; each further one ends at twice the place of that before
Found = dict[tuple[int, str], list[list[Compared]]]  # by budget and arm; of every text, its layers in parts


def measure_errors(context: Context) -> dict[str, Any]:
  """Errors of every arm at every budget, over the tokens at which a window of the whole budget would have lost some."""
  found: Found = {(budget, name): [] for budget, arms in context.settings.items() for name in arms}
  for number, ids_T in enumerate(context.ids_BT):
    for texts in found.values():
      texts.append([])
    for inputs in read_layers(context.loaded, ids_T):
      exact, position_N = exact_outputs(inputs), positions(inputs)
      for (budget, name), texts in found.items():
        arm = context.settings[budget][name]
        texts[-1].append(context.compare(arm, budget, inputs, exact))
    context.report(f"errors: text {number + 1} of {len(context.ids_BT)}")
  sizes = context.sizes
  return {
    "texts": len(context.ids_BT), "seq_len": sizes.seq_len, "tuning_texts": sizes.tuning_texts, "every": EVERY,
    "token_bytes": context.heads.token_bytes, "heads": vars(context.heads), "sinks": SINKS,
    "layers": context.loaded.config.model.layers,
    "budgets": [_of_budget(budget, arms, context.heads, found, position_N)
                for budget, arms in context.settings.items()]}


def _of_budget(
  budget: int, arms: dict[str, Arm], heads: Heads, found: Found, position_N: np.ndarray) -> dict[str, Any]:
  is_far_N = position_N >= budget
  by_text = {name: np.stack([relative_errors(text, is_far_N) for text in found[budget, name]]) for name in arms}
  ranges = _ranges(budget, int(position_N[-1]) + 1)
  records = []
  for name, arm in arms.items():
    error_B = by_text[name].mean((1, 2))
    alone_B = np.array([relative_errors(text, is_far_N, alone=True).mean() for text in found[budget, name]])
    window, far_bytes = arm.window(budget, heads), arm.far_bytes(heads)
    records.append({
      "name": name, "setting": arm.setting, "window": window, "far_bytes": far_bytes,
      "bytes": far_bytes + (window + SINKS) * heads.token_bytes,
      "error": float(error_B.mean()), "interval": interval_of_mean(error_B),
      "median_of_heads": float(np.median(by_text[name].mean(0))), "without_summary": float(alone_B.mean()),
      "summary_saves": [float((alone_B - error_B).mean()), *interval_of_mean(alone_B - error_B)],
      "by_layer": by_text[name].mean((0, 2)).tolist(),
      "by_position": [_in_range(found[budget, name], (position_N >= low) & (position_N < high))
                      for low, high in ranges]})
  return {
    "budget": budget, "ranges": ranges, "arms": sorted(records, key=lambda record: record["error"]),
    "order": [_difference(better, worse, by_text) | {"is_claim": number < CLAIMS}
              for number, (better, worse) in enumerate(PAIRS) if better in by_text and worse in by_text]}


def _in_range(texts: list[list[Compared]], is_in_N: np.ndarray) -> float:
  return float(np.mean([relative_errors(text, is_in_N) for text in texts]))


def _difference(better: str, worse: str, by_text: dict[str, np.ndarray]) -> dict[str, Any]:
  """How much larger the error of `worse` is, text by text; and the share of heads of all layers in which it is."""
  more_BLQ = by_text[worse] - by_text[better]
  low, high = interval_of_mean(more_BLQ.mean((1, 2)))
  return {
    "better": better, "worse": worse, "more": float(more_BLQ.mean()), "interval": [low, high], "holds": low > 0,
    "share_of_heads": float((more_BLQ.mean(0) > 0).mean())}


def _ranges(start: int, length: int) -> list[tuple[int, int]]:
  """From `start` on, up to 256, 512, 1,024 … tokens."""
  edges = [start]
  while edges[-1] < length:
    edges.append(min(length, next(_POSITIONS << power for power in range(32) if _POSITIONS << power > edges[-1])))
  return list(itertools.pairwise(edges))
