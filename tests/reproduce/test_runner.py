"""What is missing is run, once; a failure stops nothing else; results join by their fingerprint alone."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lattice_jax.reproduce import results
from lattice_jax.reproduce.results import Collector, Store
from lattice_jax.reproduce.rows import Measurement
from lattice_jax.reproduce.runner import Runner, is_done
from lattice_jax.reproduce.units import Units, read_record
from lattice_jax.source_code import tree_sources
from tests.reproduce import rows


def named(*measurements):
  return {one.name: one for one in measurements}


def run(units, names, jobs=1):
  said = []
  runner = Runner(units, jobs=jobs, say=said.append)
  assert runner.run([unit for name in names for unit in units.of(name)]) == 0
  return runner, said


def test_a_failure_is_reported_and_only_what_reads_it_is_left_out(tmp_path):
  units = Units(named(
    rows.command("broken", 0, text="import sys; sys.exit('no such thing')"),
    rows.command("reads", 1, needs=("broken",)), rows.command("other", 2)), tmp_path)
  runner, said = run(units, ["broken", "reads", "other"])
  assert [unit.measurement.name for unit in runner.failed] == ["broken", "reads"]
  assert "[1/3] broken: failed: no such thing (exit status 1)" in said
  assert "[2/3] reads: cannot begin: broken is not done" in said
  assert is_done(units.of("other")[0]) and not is_done(units.of("broken")[0])
  assert read_record(units.of("broken")[0].folder).state == "failed"


def test_a_stored_result_counts_only_with_its_fingerprint(tmp_path):
  """Another machine has results.json and no folder; a command of other words makes the result an earlier one."""
  row = rows.row("r", "m")
  units, store = Units(named(rows.command("m", 2.5)), tmp_path / "runs"), Store(tmp_path / "out")
  collector = Collector(units, store)
  assert collector.missing(units.of("m")[0], [("t", row)])
  run(units, ["m"])
  assert not collector.missing(units.of("m")[0], [("t", row)])
  store.put("t", "r", collector.row("t", row))
  store.write()

  there = Collector(Units(named(rows.command("m", 2.5)), tmp_path / "elsewhere"), Store(tmp_path / "out"))
  found = there.row("t", row)
  assert found.readings == {"once": 2.5} and found.is_whole and not found.earlier
  other = Collector(Units(named(rows.command("m", 3.5)), tmp_path / "elsewhere"), Store(tmp_path / "out"))
  found = other.row("t", row)
  assert not found.readings and not found.is_whole and found.earlier[0].readings == {"once": 2.5}


def test_a_result_reads_what_it_needs_and_so_depends_on_it(tmp_path):
  def prints(value):
    units = Units(named(rows.command("base", value), rows.command("m", 1, needs=("base",))), tmp_path)
    return units.of("m")[0].fingerprint

  assert prints(1) == prints(1) and prints(1) != prints(2)


def test_a_finished_run_without_the_rows_figure_is_a_problem_and_no_result(tmp_path):
  units = Units(named(rows.command("m", 1, text="pass")), tmp_path)
  run(units, ["m"])
  collector = Collector(units, Store(tmp_path / "out"))
  assert not collector.row("t", rows.row("r", "m")).of_today
  assert "row r, m:" in collector.problems[0] and "out.json cannot be read" in collector.problems[0]


def test_what_an_attempt_left_behind_is_removed_before_the_next(tmp_path):
  append = "import pathlib, sys; p = pathlib.Path(sys.argv[1], 'lines'); f = p.open('a'); f.write('a\\n'); sys.exit(1)"
  made = rows.command("m", 0, text=append)
  made = dataclasses.replace(made, make=dataclasses.replace(made.make, starts_over=("lines",)))
  units = Units(named(made), tmp_path)
  run(units, ["m"])
  run(units, ["m"])
  assert (units.of("m")[0].folder / "lines").read_text() == "a\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A training of three updates, by the runner."""
  folder = tmp_path_factory.mktemp("reproduce")
  units = Units(named(Measurement("small", rows.TRAIN, "enwiki_sample", 0.2)), folder / "runs")
  runner, _ = run(units, ["small"])
  assert not runner.failed
  return units.of("small")[0]


def test_a_training_leaves_the_rows_figure_and_who_made_it(trained, tmp_path):
  units = Units(named(trained.measurement), trained.folder.parents[2])
  result = Collector(units, Store(tmp_path)).row("t", rows.training_row("r", "small"))
  assert result.is_whole and 3 < result.readings["0"] < 9
  assert "--config.train.seed=0" in result.of_today[0].command and result.of_today[0].minutes > 0


def test_a_run_that_train_py_made_by_itself_joins_where_its_code_config_and_data_are_the_same(
    trained, tmp_path, monkeypatch):
  row, elsewhere = rows.training_row("r", "small"), tmp_path / "runs"

  def collect(overrides=()):
    make = dataclasses.replace(rows.TRAIN, overrides=(*rows.TRAIN.overrides, *overrides))
    units = Units(named(Measurement("small", make, "enwiki_sample", 0.2)), elsewhere)
    return Collector(units, Store(tmp_path), [trained.folder.parents[1]]).row("t", row)

  monkeypatch.setattr(results, "commit_sources", lambda commit: tree_sources())
  assert collect().readings == {"0": pytest.approx(Collector(
    Units(named(trained.measurement), trained.folder.parents[2]), Store(tmp_path)).row("t", row).readings["0"])}
  assert collect(["train.log_every=2"]).is_whole  # how often progress is shown decides nothing
  assert not collect(["optimizer.learning_rate=0.001"]).is_whole
  monkeypatch.setattr(results, "commit_sources", lambda commit: None)  # a commit that nobody has
  assert not collect().is_whole
  changed = dict(tree_sources()) | {"lattice_jax/training/step.py": b"x = 1"}
  monkeypatch.setattr(results, "commit_sources", lambda commit: changed)
  assert not collect().is_whole


def test_a_run_that_went_on_with_other_code_does_not_join(trained, tmp_path, monkeypatch):
  run_file = trained.folder / "run.json"
  before = run_file.read_text()
  history = [{"step": 1, "time": "", "changes": {"git_commit": ["a", "b"]}}]
  run_file.write_text(json.dumps(json.loads(before) | {"history": history}))
  monkeypatch.setattr(results, "commit_sources", lambda commit: tree_sources())
  units = Units(named(trained.measurement), tmp_path / "runs")
  row = rows.training_row("r", "small")
  assert not Collector(units, Store(tmp_path), [trained.folder]).row("t", row).is_whole
  run_file.write_text(before)
  assert Collector(units, Store(tmp_path), [trained.folder]).row("t", row).is_whole


def test_a_folder_without_runs_is_refused(tmp_path):
  with pytest.raises(ValueError, match="holds no run of"):
    Collector(Units({}, tmp_path), Store(tmp_path), [tmp_path])
