"""A run that is interrupted, or cannot write, at any moment says one sentence, and the same command ends as if not."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from lattice_jax.inspect.same_run import differences
from tests.faults.faulty_run import STEPS
from tests.thorough import further
from tests.training import tiny

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "tests.faults.faulty_run"]


def run(workdir, moment, fault):
  return subprocess.run([*COMMAND, workdir, moment, fault], capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def train_to_the_end():
  """The same command without a fault, in one process for all workdirs, whose start takes longer than its training."""
  with subprocess.Popen(
      COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

    def train(workdir):
      process.stdin.write(f"{workdir}\n")
      process.stdin.flush()
      while (said := process.stdout.readline()) not in ("ended\n", ""):
        pass
      assert said, process.stderr.read()

    yield train
    _, errors = process.communicate(timeout=100)
  assert (process.returncode, errors) == (0, "")


@pytest.fixture(scope="module")
def unbroken(train_to_the_end, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  train_to_the_end(workdir)
  return workdir


@pytest.fixture
def workdir():
  """A folder that every user of the machine may reach, unlike those of pytest."""
  with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder).chmod(0o755)
    yield pathlib.Path(folder) / "run"


def assert_one_sentence(done, status, sentence):
  assert done.returncode == status, done.stderr
  assert done.stderr.count("\n") == 1 and sentence in done.stderr, done.stderr


@pytest.fixture
def assert_goes_on_to_the_same_end(train_to_the_end, unbroken, monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)

  def check(workdir):
    train_to_the_end(workdir)
    assert differences(workdir, unbroken) == []

  return check


@pytest.mark.parametrize(("moment", "fault", "sentence"), [
  ("import", "SIGINT", "stopped by SIGINT; nothing is lost"),
  ("import", "SIGTERM", "stopped by SIGTERM; nothing is lost"),
  *further(("data", "SIGINT", "stopped by SIGINT; nothing is lost")),
  ("compile", "SIGTERM", f"stopped by SIGTERM at step 0 of {STEPS}"),
  ("compile", "deaf_SIGINT", "aborted"),
])
def test_signal_before_the_first_update_ends_with_one_sentence(workdir, moment, fault, sentence):
  stopped = run(workdir, moment, fault)
  assert_one_sentence(stopped, 128 + signal.Signals[fault.removeprefix("deaf_")], sentence)
  assert not list(workdir.glob("checkpoints/*"))


@pytest.mark.parametrize(("moment", "fault", "sentence"), [
  ("update", "SIGINT", "stopped by SIGINT at step 8"),
  ("update", "both_SIGINT", "aborted"),
  *further(("evaluate", "SIGTERM", "stopped by SIGTERM at step 6")),
  ("last_evaluate", "SIGTERM", f"stopped by SIGTERM at step {STEPS} of {STEPS}"),
  ("save", "SIGTERM", "stopped by SIGTERM at step 6"),
  ("save", "both_SIGINT", "aborted"),
])
def test_signal_ends_the_run_with_one_sentence_and_loses_nothing(
    workdir, assert_goes_on_to_the_same_end, moment, fault, sentence):
  stopped = run(workdir, moment, fault)
  assert_one_sentence(stopped, 128 + signal.Signals[fault.removeprefix("both_")], sentence)
  assert_goes_on_to_the_same_end(workdir)


def test_file_in_the_place_of_the_checkpoints_ends_the_run_at_once(workdir, assert_goes_on_to_the_same_end):
  """The library that writes checkpoints waits minutes for a folder that never comes."""
  assert_one_sentence(run(workdir, "update", "file_for_folder"), 2, "could not be written under")
  (workdir / "checkpoints").unlink()
  (workdir / "moved").rename(workdir / "checkpoints")
  assert_goes_on_to_the_same_end(workdir)


@pytest.mark.parametrize(("moment", "fault", "sentence"), [
  ("update", "full_disk", "could not be written under"),
  ("save", "full_disk", "the checkpoint of step 5 could not be written under"),
  ("update", "full_metrics", "File too large"),
  *further(("update", "read_only", "Permission denied")),
])
def test_disk_that_takes_no_more_costs_no_checkpoint_that_is_there(
    workdir, assert_goes_on_to_the_same_end, moment, fault, sentence):
  failed = run(workdir, moment, fault)
  assert_one_sentence(failed, 2, sentence)
  assert "then run the same command" in failed.stderr
  (workdir / "checkpoints").chmod(0o755)
  assert_goes_on_to_the_same_end(workdir)
