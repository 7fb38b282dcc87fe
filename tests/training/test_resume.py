"""kill -9 at any moment leaves no trace in the result."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import jax
import pytest

from lattice_jax.inspect.same_run import differences, newest_state, timeless_lines
from lattice_jax.training import loop
from tests.training import killed_run, tiny

pytestmark = pytest.mark.slow


def run(workdir, *arguments):
  return subprocess.run(
    [sys.executable, "-m", "tests.training.killed_run", str(workdir), *map(str, arguments)], capture_output=True,
    text=True, timeout=600, check=False)


@pytest.mark.timeout(900)
def test_killed_at_two_random_moments_equals_unbroken(tmp_path):
  draw = random.Random(0)
  unbroken = run(tmp_path / "unbroken")
  assert unbroken.returncode == 0, unbroken.stderr
  workdir = tmp_path / "killed"
  for first, last in ((2, 12), (14, 26)):
    killed = run(workdir, int(signal.SIGKILL), draw.randint(first, last), draw.uniform(0, 0.02))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
  ended = run(workdir)
  assert ended.returncode == 0, ended.stderr
  assert differences(workdir, tmp_path / "unbroken") == []
  _, state = newest_state(workdir)
  assert jax.tree.leaves(state.memory) and jax.tree.leaves(state.buffers)
  lines = timeless_lines(workdir)
  assert [line["step"] for line in lines if "split" not in line] == list(range(1, killed_run.STEPS + 1))
  assert [line["step"] for line in lines if "split" in line] == [10, 20, 30]


@pytest.mark.timeout(600)
def test_sigterm_saves_and_exits_with_one_sentence(tmp_path):
  stopped = run(tmp_path, int(signal.SIGTERM), 10, 0.0)
  assert stopped.returncode == 128 + signal.SIGTERM
  assert stopped.stderr.count("\n") == 1 and "stopped by SIGTERM at step" in stopped.stderr
  step = timeless_lines(tmp_path)[-1]["step"]
  assert 10 <= step < killed_run.STEPS and (tmp_path / "checkpoints" / str(step)).is_dir()


def test_runs_that_differ_are_told_apart(tmp_path, monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  for name, changes in (("one", {}), ("other", {"train__seed": 1})):
    loop.train(tiny.make_config(train__steps=2, **changes), tmp_path / name)
  assert differences(tmp_path / "one", tmp_path / "one") == []
  lines = (tmp_path / "other" / "metrics.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "other" / "metrics.jsonl").write_text("".join([*lines, lines[-1]]))
  found = differences(tmp_path / "other", tmp_path / "one")
  assert "has 4 metric lines" in found[0] and "a metric line of" in found[1]
  assert any("embedding" in sentence for sentence in found)
