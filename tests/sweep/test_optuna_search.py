"""Random and Bayesian search draw the same trials again, however often they are interrupted."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from lattice_jax.sweep.optuna_search import OptunaSearch
from tests.sweep import sweeps

PARAMETERS = {
  "size": {"min": 1, "max": 9}, "rate": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-1},
  "width": {"distribution": "q_uniform", "min": 16, "max": 64, "q": 16}, "form": {"values": ["scan", "chunk"]},
  "shift": {"distribution": "normal", "mu": 5.0}, "share": {"min": 0.0, "max": 1.0}, "depth": {"value": 3}}


def read(folder, method, **changes):
  return sweeps.read(folder, method=method, **{"run_cap": 12, "parameters": PARAMETERS} | changes)


def draw(sweep, workdir, *, seed=0, restart=False):
  search, found = OptunaSearch(sweep, workdir, seed), []
  for index in range(search.total):
    if restart and index % 5 == 3:
      search = OptunaSearch(sweep, workdir, seed)
    values = search.trial(index).values
    found.append(values)
    search.tell(index, abs(math.log(values["rate"] / 1e-2)))
  return found


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_seed_gives_the_same_trials_however_often_it_restarts(tmp_path, method):
  sweep = read(tmp_path, method)
  trials = draw(sweep, tmp_path / "a")
  assert draw(sweep, tmp_path / "b", restart=True) == trials
  assert draw(sweep, tmp_path / "a") == trials, "the journal"
  assert draw(sweep, tmp_path / "c", seed=1) != trials
  assert len({values["rate"] for values in trials}) == 12
  for values in trials:
    assert values["size"] in range(1, 10) and values["width"] in (16, 32, 48, 64) and values["depth"] == 3
    assert 1e-4 <= values["rate"] <= 1e-1 and 0 <= values["share"] <= 1 and abs(values["shift"] - 5) < 5
    assert list(values) == list(PARAMETERS)


def test_bayes_learns_from_what_is_told(tmp_path):
  """After ten random trials the sampler looks where the loss was low."""
  found = {}
  for method in ("random", "bayes"):
    sweep = read(tmp_path, method, run_cap=30, parameters={"rate": PARAMETERS["rate"], "depth": {"value": 3}})
    late = draw(sweep, tmp_path / method)[10:]
    found[method] = sum(abs(math.log(values["rate"] / 1e-2)) for values in late) / len(late)
  assert found["bayes"] < 0.8 * found["random"]


def test_sampled_trials_run_resume_and_are_told_once(tmp_path):
  sweep = sweeps.read(tmp_path, method="random", run_cap=3, parameters={"size": {"min": 0.0, "max": 5.0}})
  workdir = tmp_path / "runs"
  failed, said = sweeps.run(sweep, workdir)
  assert failed == 0 and said[0] == "[1/3] trial_000: begins"
  assert sweeps.run(sweep, workdir) == (0, [])
  more = sweeps.read(tmp_path, method="random", run_cap=4, parameters={"size": {"min": 0.0, "max": 5.0}})
  assert sweeps.run(more, workdir)[1][0] == "[4/4] trial_003: begins"
  table = sweeps.table(more, workdir)
  assert len(table.rows) == 4 and table.rows[0].results[0].metric <= table.rows[1].results[0].metric


def test_a_trial_that_was_cut_off_while_it_was_drawn_is_passed_over(tmp_path):
  sweep = read(tmp_path, "random")
  search = OptunaSearch(sweep, tmp_path, 0)
  first = search.trial(0).values
  storage = optuna.storages.JournalStorage(
    optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal")))
  study = optuna.load_study(study_name="sweep", storage=storage)
  study.ask().suggest_int("size", 1, 9)
  search = OptunaSearch(sweep, tmp_path, 0)
  assert search.trial(0).values == first
  assert search.trial(1).values == OptunaSearch(sweep, tmp_path, 0).trial(1).values
  assert [trial.state for trial in study.get_trials()] == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]


@pytest.mark.parametrize(("changes", "seed", "what"), [
  ({"method": "bayes"}, 0, "method"), ({}, 1, "seed"),
  ({"parameters": {"size": {"min": 1, "max": 5}}}, 0, "parameters"),
], ids=str)
def test_a_workdir_of_another_search_is_refused(tmp_path, changes, seed, what):
  OptunaSearch(read(tmp_path, "random"), tmp_path, 0)
  other = sweeps.read(tmp_path, **{"method": "random", "run_cap": 12, "parameters": PARAMETERS} | changes)
  with pytest.raises(ValueError, match=f"holds a sweep with another {what} .*choose another --workdir"):
    OptunaSearch(other, tmp_path, seed)
