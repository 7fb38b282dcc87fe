"""train.py answers a user's mistake with one sentence and exit status 2, before anything is made."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from lattice_jax.commands.devices import simulate_devices
from lattice_jax.training.workdir import locked
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = "--config=configs/quickstart.py:smoke"


def train(*arguments):
  return subprocess.run(
    [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_run_id_in_the_workdir_is_that_of_the_environment(tmp_path, monkeypatch):
  monkeypatch.delenv("WANDB_RUN_ID", raising=False)
  refused = train(SMOKE, f"--workdir={tmp_path}/{{run_id}}")
  assert refused.returncode == 2
  assert "WANDB_RUN_ID, which is not set" in refused.stderr and refused.stderr.count("\n") == 1
  monkeypatch.setenv("WANDB_RUN_ID", "trial7")
  with locked(tmp_path / "trial7"):
    refused = train(SMOKE, f"--workdir={tmp_path}/{{run_id}}")
  assert f"another process is training in --workdir={tmp_path}/trial7;" in refused.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["trial7"]


@pytest.mark.parametrize(("arguments", "sentence"), [
  ((SMOKE, "--config.model.dimm=3"), "unknown config field model.dimm; this section has vocab, dim,"),
  ((SMOKE, "--config.model.dim=abc"), "model.dim=abc must be a whole number."),
  ((SMOKE, "--set=optimizer.clip_norm=-1"), "optimizer.clip_norm=-1 must be 0 or more and finite."),
  (("--config=configs/quickstart.py:smkoe",), "Did you mean 'smoke'?"),
  (("--config=configs/quickstrt.py",), "--config=configs/quickstrt.py: there is no such file; configs/"),
  ((SMOKE, "--workdri=x"), "Did you mean --workdir?"),
  ((SMOKE, "--config.data.update_len=7"), "use a divisor such as 4"),
  ((SMOKE, "--profile=3"), "START:STOP"),
  ((SMOKE, "more"), "unexpected argument 'more'"),
  ((), "--config is missing"),
], ids=str)
def test_mistake_is_one_sentence(tmp_path, arguments, sentence):
  done = train(*arguments, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert sentence in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("cores", "batch", "accumulate", "mesh", "count"), [
  (2, 8, 1, {}, 2), (6, 8, 1, {}, 4), (6, 12, 2, {}, 6), (1, 8, 1, {}, None), (4, 7, 1, {}, None),
  (4, 8, 1, {"data": 1}, None), (3, 12, 1, {"model": 2}, 2), (5, 15, 1, {"model": 2}, 2), (1, 5, 1, {"model": 2}, None),
])
def test_a_cpu_is_as_many_devices_as_cores_divide_the_rows(monkeypatch, capsys, cores, batch, accumulate, mesh, count):
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
  changed = {}
  monkeypatch.setattr(jax.config, "update", changed.__setitem__)
  config = tiny.make_config(data__batch=batch, train__accumulate=accumulate)
  simulate_devices(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh)))
  assert changed == ({"jax_num_cpu_devices": count} if count else {})
  assert (f"{count} simulated devices, one a core" in capsys.readouterr().out) == bool(count)
