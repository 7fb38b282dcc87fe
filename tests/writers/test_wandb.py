"""Weights & Biases as it is written to disk: one run a workdir, no row twice, offline where there is no server."""

from __future__ import annotations

import json

import pytest

from lattice_jax.writers import RunInfo, Writers
from tests.writers import wandb_file

DESCRIPTION = {"config": {"name": "small", "model": {"dim": 3}}, "git_commit": "abc"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
  for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def write(workdir, start_step, steps):
  writers = Writers(("wandb",), RunInfo(workdir, start_step, DESCRIPTION))
  for step in steps:
    writers.report({"step": step, "total": 99, "loss": 1 / step, "mfu": None})
  writers.evaluation({"step": steps[-1], "split": "test", "protocol": "cold", "bits_per_byte": 2.0})
  writers.close()


def read(workdir):
  """The runs, and all rows of all processes as (step, name) → value."""
  files = [wandb_file.read_records(path) for path in sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))]
  rows = [row for records in files for row in wandb_file.rows(records)]
  values = [
    ((row["step"], name), value) for row in rows for name, value in row.items() if name != "step" and name[0] != "_"]
  assert len(dict(values)) == len(values), "a value was logged twice"
  assert [row["_step"] for row in rows] == list(range(len(rows)))
  return [wandb_file.run_record(records) for records in files], dict(values)


def test_resumed_run_goes_on_as_the_same_run_and_repeats_nothing(tmp_path):
  write(tmp_path, 0, (10, 20, 30))
  write(tmp_path, 20, (30, 40))
  (first, second), values = read(tmp_path)
  assert first == second
  run_id, project, name, config = first
  assert (project, name) == ("lattice_jax", "small") and config["model"] == {"dim": 3}
  assert config["run"] == {"git_commit": "abc"}
  assert json.loads((tmp_path / "wandb.json").read_text())["id"] == run_id
  assert values == {
    (10, "train/loss"): 0.1, (20, "train/loss"): 0.05, (30, "train/loss"): 1 / 30, (40, "train/loss"): 0.025,
    (30, "eval_test_cold/bits_per_byte"): 2, (40, "eval_test_cold/bits_per_byte"): 2}


def test_environment_names_the_run_and_the_project(tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_RUN_ID", "trial7")
  monkeypatch.setenv("WANDB_PROJECT", "mine")
  write(tmp_path, 0, (10,))
  monkeypatch.setenv("WANDB_RUN_ID", "another")  # the workdir's own run goes on
  write(tmp_path, 10, (20,))
  runs, _ = read(tmp_path)
  assert [run[:2] for run in runs] == [("trial7", "mine")] * 2


def test_server_that_does_not_answer_costs_one_sentence(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
  monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
  monkeypatch.setattr("lattice_jax.writers.wandb._ANSWER_TIMEOUT", 1)
  write(tmp_path, 0, (10,))
  said = capfd.readouterr().err
  assert said.count("\n") == 1 and "the run continues offline" in said
  assert (10, "train/loss") in read(tmp_path)[1]


def test_mode_of_the_environment_is_obeyed(tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "disabled")
  write(tmp_path, 0, (10,))
  assert not (tmp_path / "wandb").exists()
  monkeypatch.setenv("WANDB_MODE", "on")
  with pytest.raises(ValueError, match="WANDB_MODE=on is not one of online, offline, disabled"):
    write(tmp_path, 10, (20,))


def test_damaged_id_is_one_sentence(tmp_path):
  (tmp_path / "wandb.json").write_text('{"id": ')
  with pytest.raises(ValueError, match="remove it to start a new W&B run"):
    write(tmp_path, 0, (10,))
