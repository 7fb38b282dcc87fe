"""Random and Bayesian search through Optuna, with its journal in the sweep's workdir."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lattice_jax.sweep.labels import numbered_id
from lattice_jax.sweep.sweep_file import Sweep
from lattice_jax.sweep.trials import Trial

_DRAWN = "values"  # user attribute of a trial all of whose parameters are in the journal


class OptunaSearch:
  """Draws trial n with a generator of its own, so that interruptions change nothing.

  A failed trial stays open in the journal: the sampler ignores it, and a later call runs it again.
  """

  def __init__(self, sweep: Sweep, workdir: Path, seed: int):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workdir.mkdir(parents=True, exist_ok=True)
    self._sweep, self._seed, self.total = sweep, seed, sweep.run_cap
    self._study = optuna.create_study(
      storage=JournalStorage(JournalFileBackend(str(workdir / "optuna.journal"))), study_name="sweep",
      direction="maximize" if sweep.maximize else "minimize", load_if_exists=True)
    self._check_same(workdir)
    for half_drawn in self._study.get_trials(deepcopy=False):
      if _DRAWN not in half_drawn.user_attrs and not half_drawn.state.is_finished():
        self._study.tell(half_drawn.number, state=TrialState.FAIL)

  def trial(self, index: int) -> Trial:
    drawn = self._drawn()
    if index == len(drawn):
      self._draw(index)
      drawn = self._drawn()
    return Trial(index, numbered_id(index), drawn[index].user_attrs[_DRAWN])

  def tell(self, index: int, value: float) -> None:
    trial = self._drawn()[index]
    if not trial.state.is_finished():
      self._study.tell(trial.number, value)

  def _drawn(self) -> list[FrozenTrial]:
    return [trial for trial in self._study.get_trials(deepcopy=False) if _DRAWN in trial.user_attrs]

  def _draw(self, index: int) -> None:
    seed = int(np.random.SeedSequence([self._seed, index]).generate_state(1)[0])
    sampler = optuna.samplers.RandomSampler if self._sweep.method == "random" else optuna.samplers.TPESampler
    self._study.sampler = sampler(seed=seed)
    trial = self._study.ask()
    trial.set_user_attr(_DRAWN, {parameter.name: parameter.draw(trial) for parameter in self._sweep.parameters})

  def _check_same(self, workdir: Path) -> None:
    """Raises ValueError if the trials of this folder were drawn by other rules."""
    rules = {
      "method": self._sweep.method, "metric": self._sweep.metric, "seed": self._seed,
      "parameters": [repr(parameter) for parameter in self._sweep.parameters]}
    stored = self._study.user_attrs
    for name, value in rules.items():
      if name in stored and stored[name] != value:
        raise ValueError(f"{workdir} holds a sweep with another {name} ({stored[name]} → {value}); choose another "
                         "--workdir.")
      if name not in stored:
        self._study.set_user_attr(name, value)
