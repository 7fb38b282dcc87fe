"""What the parts of a report on local attention share: the model, the texts, and the setting of every arm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.inspect.local.arms import CALL, NAMES, WINDOW, Arm, Heads, candidates
from lattice_jax.inspect.local.stream import (
  Compared,
  Inputs,
  compare,
  exact_outputs,
  positions,
  relative_errors,
  with_features,
)
from lattice_jax.inspect.local.texts import heads_of, read_layers, read_texts
from lattice_jax.memories.local.maps_file import FittedMaps

_TUNED_LAYERS = 3  # of so many, one is read when settings are chosen


@dataclass(frozen=True)
class Sizes:
  """texts, seq_len: what is read. tuning_texts: others, on which settings are chosen. budgets: bytes of one head of one
  layer, as tokens that they would hold. needle_texts: texts with a planted key."""

  texts: int
  tuning_texts: int
  needle_texts: int
  seq_len: int
  budgets: tuple[int, ...]
  seed: int


@dataclass(frozen=True, eq=False)
class Context:
  """Settings and texts are made when a part first asks for them. fitted: maps of features that are compared as well."""

  loaded: LoadedModel
  split: str
  sizes: Sizes
  report: Callable[[str], None]
  fitted: Sequence[FittedMaps] = ()

  @functools.cached_property
  def heads(self) -> Heads:
    return heads_of(self.loaded)

  @functools.cached_property
  def ids_BT(self) -> np.ndarray:
    return read_texts(self.loaded, self.split, self.sizes.seq_len, self.sizes.texts)

  @functools.cached_property
  def settings(self) -> dict[int, dict[str, Arm]]:
    """By budget and name, the candidate with the least error on texts of the validation split."""
    asked = {
      budget: {name: candidates(name, budget, self.heads, self.fitted) for name in NAMES}
      for budget in self.sizes.budgets}
    totals = {(budget, arm): 0.0 for budget, arms in asked.items() for each in arms.values() for arm in each}
    for ids_T in read_texts(self.loaded, "validation", self.sizes.seq_len, self.sizes.tuning_texts):
      for inputs in read_layers(self.loaded, ids_T, every=_TUNED_LAYERS):
        exact = exact_outputs(inputs)
        is_far = positions(inputs)
        for budget, arms in asked.items():
          for arm in (arm for each in arms.values() if len(each) > 1 for arm in each):
            compared = self.compare(arm, budget, inputs, exact)
            totals[budget, arm] += float(relative_errors([compared], is_far >= budget).mean())
    chosen = {}
    for budget, arms in asked.items():
      chosen[budget] = {
        name: each[int(np.argmin([totals[budget, arm] for arm in each]))] for name, each in arms.items() if each}
      self.report(f"{budget} tokens: " + "; ".join(f"{name}: {arm.setting}" for name, arm in chosen[budget].items()))
    return chosen

  def compare(self, arm: Arm, budget: int, inputs: Inputs, exact_LNQV: jax.Array, asked: int = 0) -> Compared:
    """`stream.compare` with the window that the arm's budget leaves, and the maps that it needs."""
    if arm.maps is not None:
      inputs = with_features(inputs, self.fitted[arm.maps].of_layers(inputs.layer_L))
    return compare(arm, arm.window(budget, self.heads), inputs, exact_LNQV, asked)

  def check(self) -> None:
    """Raises ValueError for texts or budgets that leave nothing to compare."""
    length, context_len = self.sizes.seq_len, self.loaded.context_len
    if context_len is not None and length > context_len:
      raise ValueError(
        f"--seq_len={length} is more than the {context_len:,} tokens that {self.loaded.config.name} was made for; use "
        "a smaller --seq_len.")
    if length % CALL:
      raise ValueError(f"--seq_len={length} must be a multiple of {CALL}, the tokens that leave a window at a time.")
    for budget in self.sizes.budgets:
      if budget >= length:
        raise ValueError(
          f"--budgets={budget} tokens hold a text of --seq_len={length} whole; use smaller budgets or longer texts.")
      if not candidates(WINDOW, budget, self.heads):
        raise ValueError(f"--budgets={budget} tokens are fewer than sinks and a window need; use larger budgets.")
