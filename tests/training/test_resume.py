"""kill -9 at any moment leaves no trace in the result."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import jax
import pytest

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.sharding import make_mesh
from lattice_jax.training.state import abstract_state
from tests.training import killed_run, tiny

pytestmark = pytest.mark.slow


def run(workdir, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "tests.training.killed_run", str(workdir), *map(str, arguments)], capture_output=True,
    text=True, timeout=600, check=False)


def final_state(workdir):
  config = killed_run.make_config()
  checkpoints = Checkpoints(workdir)
  step, state = checkpoints.restore_latest(abstract_state(config, make_mesh(config.mesh, jax.devices()[:1])))
  checkpoints.close()
  assert step == killed_run.STEPS
  return state


def lines(workdir):
  """The lines of metrics.jsonl without what depends on the clock."""
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [
    {name: value for name, value in record.items() if name != "tokens_per_second" and not name.startswith("time_")}
    for record in records]


@pytest.mark.timeout(900)
def test_killed_at_three_random_moments_equals_unbroken(tmp_path):
  draw = random.Random(0)
  unbroken = run(tmp_path / "unbroken")
  assert unbroken.returncode == 0, unbroken.stderr
  workdir = tmp_path / "killed"
  for first, last in ((2, 8), (11, 17), (20, 26)):
    killed = run(workdir, int(signal.SIGKILL), draw.randint(first, last), draw.uniform(0, 0.02))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
  ended = run(workdir)
  assert ended.returncode == 0, ended.stderr
  tiny.assert_same_bits(final_state(workdir), final_state(tmp_path / "unbroken"))
  assert jax.tree.leaves(final_state(workdir).memory) and jax.tree.leaves(final_state(workdir).buffers)
  assert lines(workdir) == lines(tmp_path / "unbroken")
  updates = [record["step"] for record in lines(workdir) if "split" not in record]
  assert updates == list(range(1, killed_run.STEPS + 1))
  assert [record["step"] for record in lines(workdir) if "split" in record] == [10, 20, 30]


@pytest.mark.timeout(600)
def test_sigterm_saves_and_exits_with_one_sentence(tmp_path):
  stopped = run(tmp_path, int(signal.SIGTERM), 10, 0.0)
  assert stopped.returncode == 128 + signal.SIGTERM
  assert stopped.stderr.count("\n") == 1 and "stopped by SIGTERM at step" in stopped.stderr
  step = lines(tmp_path)[-1]["step"]
  assert 10 <= step < killed_run.STEPS and (tmp_path / "checkpoints" / str(step)).is_dir()
