"""Trials are run once, resumed, and recorded where they fail; the command ends in a table."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

from lattice_jax.commands.run import run_script
from lattice_jax.sweep import runner
from lattice_jax.sweep.search import make_search
from lattice_jax.sweep.trials import read_records
from tests.sweep import sweeps

SCRIPT = Path(__file__).parents[2] / "scripts" / "sweep.py"


def calls(workdir):
  """How often the program ran in each trial's folder."""
  return {path.parent.name: len(path.read_text().splitlines()) for path in sorted(workdir.glob("*/calls"))}


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_trial_runs_once_with_its_own_folder_and_arguments(tmp_path, jobs):
  sweep, workdir = sweeps.read(tmp_path), tmp_path / "runs"
  failed, said = sweeps.run(sweep, workdir, jobs=jobs)
  assert failed == 0
  assert len(said) == 12 and "[1/6] size=1_seed=0: begins" in said
  flags = json.loads((workdir / "size=2_seed=1" / "calls").read_text())
  assert flags == {"size": "2", "seed": "1", "workdir": f"{workdir}/{{run_id}}"}
  assert sweeps.run(sweep, workdir) == (0, [])
  assert calls(workdir) == {f"size={size}_seed={seed}": 1 for size in (1, 2, 4) for seed in (0, 1)}


def test_a_grid_that_grows_runs_only_what_is_new(tmp_path):
  sweeps.run(sweeps.read(tmp_path, run_cap=2), tmp_path / "runs")
  sweeps.run(sweeps.read(tmp_path), tmp_path / "runs")
  assert set(calls(tmp_path / "runs").values()) == {1} and len(calls(tmp_path / "runs")) == 6


def test_a_failed_trial_is_recorded_the_others_go_on_and_it_is_tried_again(tmp_path):
  sweep, workdir = sweeps.read(tmp_path), tmp_path / "runs"
  workdir.mkdir()
  (workdir / "fail").write_text("2")
  failed, said = sweeps.run(sweep, workdir)
  assert failed == 2 and "[3/6] size=2_seed=0: failed: too large (exit status 3)" in said
  assert [record.state for record in read_records(workdir)] == ["done", "done", "failed", "failed", "done", "done"]
  text = runner.last_line(workdir / "size=2_seed=0" / "stderr.txt", 0)
  assert text == "too large"
  (workdir / "fail").unlink()
  assert sweeps.run(sweep, workdir)[0] == 0
  assert calls(workdir)["size=2_seed=0"] == 2 and calls(workdir)["size=1_seed=0"] == 1


def test_what_a_trial_says_before_anything_looks_is_its_message(tmp_path, monkeypatch):
  workdir = tmp_path / "runs"
  workdir.mkdir()
  (workdir / "fail").write_text("1")
  monkeypatch.setattr(
    runner, "pin", lambda process_id, slot, jobs: os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT))
  _, said = sweeps.run(sweeps.read(tmp_path, run_cap=1), workdir)
  assert "[1/1] size=1_seed=0: failed: too large (exit status 3)" in said


def test_a_trial_without_the_metric_has_failed(tmp_path):
  metric = {"name": "eval_test_cold/bits_per_byte"}
  failed, said = sweeps.run(sweeps.read(tmp_path, metric=metric, run_cap=1), tmp_path / "runs")
  assert failed == 1
  assert said[-1].endswith("has no eval_test_cold/bits_per_byte; it has eval_validation_cold/bits_per_byte.")


def test_a_signal_is_passed_on_and_the_same_sweep_goes_on(tmp_path):
  sweep, workdir, said = sweeps.read(tmp_path, run_cap=2), tmp_path / "runs", []

  def say(text):
    said.append(text)
    if "begins" in text:
      signal.raise_signal(signal.SIGINT)

  workdir.mkdir()
  (workdir / "wait").touch()
  assert runner.Runner(sweep, make_search(sweep, workdir, 0), workdir, jobs=1, say=say).run() == signal.SIGINT
  assert said[1:] == ["SIGINT: 1 trial(s) save and stop", "[1/2] size=1_seed=0: stopped; the same command resumes it"]
  assert [record.state for record in read_records(workdir)] == ["started"]
  (workdir / "wait").unlink()
  failed, said = sweeps.run(sweep, workdir)
  assert failed == 0 and said[0] == "[1/2] size=1_seed=0: resumes"


def test_a_folder_of_other_arguments_is_refused(tmp_path):
  workdir = tmp_path / "runs"
  sweeps.run(sweeps.read(tmp_path, run_cap=1), workdir)
  other = sweeps.read(tmp_path, run_cap=1, command=["${interpreter}", "${program}", "--depth=4", "${args}"])
  with pytest.raises(ValueError, match=r"size=1_seed=0 holds a trial with other arguments \(.* → --depth=4\); choose"):
    sweeps.run(other, workdir)


def test_two_sweeps_cannot_share_a_workdir(tmp_path):
  with runner.locked(tmp_path), pytest.raises(ValueError, match="another sweep runs in --workdir"), \
       runner.locked(tmp_path):
    pass


def test_wandb_gets_nothing_unless_asked(tmp_path, monkeypatch):
  monkeypatch.delenv("WANDB_MODE", raising=False)
  trial = runner.Trial(0, "a", {})
  assert runner.trial_environment(trial)["WANDB_MODE"] == "disabled"
  monkeypatch.setenv("WANDB_MODE", "offline")
  environment = runner.trial_environment(trial)
  assert (environment["WANDB_MODE"], environment["WANDB_RUN_ID"]) == ("offline", "a")


def test_jobs_share_the_cores(monkeypatch):
  given = {}
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
  monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: given.update({process: cores}))
  for slot in range(2):
    runner.pin(slot, slot, 2)
  runner.pin(9, 0, 1)
  assert given == {0: [0, 2], 1: [1, 3]}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """scripts/sweep.py in tmp_path: (exit status, output, errors)."""
  main = runpy.run_path(str(SCRIPT))["main"]
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, arguments)])
    status = 0
    try:
      run_script(main)
    except SystemExit as left:
      status = left.code
    return status, *capsys.readouterr()

  return run


def test_the_command_runs_tables_and_plots(tmp_path, command):
  path = sweeps.write(tmp_path)
  status, output, errors = command(path, "--jobs=2", "--beyond=8", "--against=size=2")
  assert (status, errors) == (0, "")
  assert "| 2 | 2 | 3.0500 ± 0.0707 | – |" in output
  out = tmp_path / "runs" / "sweeps" / "sizes"
  assert {file.name for file in out.glob("table.*")} == {"table.md", "table.jsonl", "table.csv"}
  assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
  assert command(path, "--table_only", "--out=docs")[0] == 0
  assert "--table_only" not in (tmp_path / "docs" / "table.md").read_text()


def test_exit_status_says_that_a_trial_failed(tmp_path, command):
  workdir = tmp_path / "runs" / "sweeps" / "sizes"
  workdir.mkdir(parents=True)
  (workdir / "fail").write_text("1")
  status, output, _ = command(sweeps.write(tmp_path))
  assert status == 1 and "- size=1_seed=0: too large (exit status 3)" in output


def test_a_wrong_command_is_one_sentence(tmp_path, command):
  sweeps.run(sweeps.read(tmp_path, run_cap=1), tmp_path / "runs" / "sweeps" / "sizes")
  path = sweeps.write(tmp_path)
  (tmp_path / "other").mkdir()
  for arguments in (("none.yaml",), (path, "--table_only", "--against=size=9"), (path, "--table_only", "--beyond=9"),
                    (path, "--table_only", "--workdir=absent"),
                    (sweeps.write(tmp_path / "other", program="absent.py"),)):
    status, _, errors = command(*arguments)
    assert (status, len(errors.splitlines())) == (2, 1), errors
