"""train.py as two real processes on this machine: the same run as one process, and none left waiting."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from lattice_jax.training.workdir import locked
from tests.thorough import further

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = pathlib.Path(__file__).parents[1]
SMOKE = (
  f"--config={ROOT}/configs/quickstart.py:smoke", "--config.eval.protocol=both", "--config.optimizer.schedule=constant")
# Runs a command's Python file where jax.device_put may not place arrays on the devices of all processes: to compare
# theirs it sends one around, behind what the devices are computing, so that every update begins when the last one ends.
WITHOUT_COMPARING = sys.executable, "-c", """
import runpy, sys
from jax.experimental import multihost_utils

compare = multihost_utils.assert_equal

def refuse(*given, **named):
  if sys._getframe(1).f_globals["__name__"] == "jax._src.dispatch":
    raise AssertionError("device_put compared the arrays of all processes")
  return compare(*given, **named)

multihost_utils.assert_equal = refuse
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LIMIT = 200  # seconds; a run of two takes about 15


@pytest.fixture
def start():
  """Starts train.py; whatever a test leaves running is ended."""
  started = []

  def start(workdir, *arguments, cwd=ROOT, within=(), **environment):
    started.append(subprocess.Popen(
      [*within, sys.executable, ROOT / "train.py", *SMOKE, f"--workdir={workdir}", *arguments], cwd=cwd, text=True,
      env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return started[-1]

  yield start
  for process in started:
    process.kill()
    process.communicate()


def free_address():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def start_two(start, workdir, *arguments, second=(), folders=(ROOT, ROOT), second_within=()):
  address = free_address()
  return [
    start(
      workdir, "--distributed", f"--coordinator={address}", "--num_processes=2", f"--process={number}", *arguments,
      *more, cwd=folder, within=within)
    for number, more, folder, within in ((0, (), folders[0], ()), (1, second, folders[1], second_within))]


def end(*processes, status=0):
  """What each said on stdout and on stderr."""
  spoken = [process.communicate(timeout=LIMIT) for process in processes]
  for process, (_, errors) in zip(processes, spoken, strict=True):
    assert process.returncode == status, errors
  return spoken


def records(workdir):
  """metrics.jsonl without what depends on the clock."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [
    {name: value for name, value in line.items() if name != "tokens_per_second" and not name.startswith("time_")}
    for line in lines]


def test_two_processes_train_save_and_evaluate_as_one_and_one_goes_on(tmp_path, start):
  """The stream of data is the same, or the losses would differ in the second digit."""
  two, one = tmp_path / "two", tmp_path / "one"
  end(*start_two(start, two, second_within=WITHOUT_COMPARING))
  ((resumed, _),) = end(start(two, "--config.train.steps=6"))
  assert "resumed from the checkpoint of step 4" in resumed
  end(start(one, "--config.train.steps=6", "--config.train.eval_every=4"))
  found, expected = records(two), records(one)
  assert [(line["step"], "split" in line) for line in found] == [
    (1, False), (2, False), (3, False), (4, False), (4, True), (4, True), (5, False), (6, False), (6, True), (6, True)]
  for line, other in zip(found, expected, strict=True):
    for bucket, other_bucket in zip(line.pop("buckets", []), other.pop("buckets", []), strict=True):
      bits, other_bits = bucket.pop("bits_per_byte"), other_bucket.pop("bits_per_byte")
      assert bucket == other_bucket and (bits == other_bits or bits == pytest.approx(other_bits, rel=1e-5))
    assert line == {
      name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for name, value in other.items()}


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_four_processes_two_and_one_go_on_with_the_same_run(tmp_path, start):
  """Eight devices in all each time: every checkpoint is read by another number of processes than wrote it."""
  parts, whole = tmp_path / "parts", tmp_path / "whole"
  for steps, count in enumerate((4, 2, 1, 2), 1):
    address, arguments = free_address(), (f"--config.train.steps={2 * steps}", f"--cpu_devices={8 // count}")
    end(*(start(
      parts, *arguments, *(() if count == 1 else (
        "--distributed", f"--coordinator={address}", f"--num_processes={count}", f"--process={number}")))
      for number in range(count)))
  end(start(whole, "--config.train.steps=8", "--config.train.eval_every=2", "--cpu_devices=8"))
  found, expected = (
    [(line["step"], line["loss"]) for line in records(run) if "loss" in line] for run in (parts, whole))
  assert [step for step, _ in found] == list(range(1, 9))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_signal_to_one_of_two_stops_and_saves_both(tmp_path, start):
  processes = start_two(start, tmp_path, "--config.train.steps=100000")
  assert any("loss" in line for line in processes[0].stdout), "no update was reported"
  processes[1].send_signal(signal.SIGTERM)
  for _, errors in end(*processes, status=128 + signal.SIGTERM):
    assert "stopped by SIGTERM at step" in errors
  assert records(tmp_path)[-1]["step"] == max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())


def test_what_one_process_cannot_do_ends_both_with_one_sentence(tmp_path, start):
  with locked(tmp_path):
    (_, first), (_, second) = end(*start_two(start, tmp_path), status=2)
  sentence = f"another process is training in --workdir={tmp_path}"
  assert f"train.py: {sentence}" in first and f"train.py: process 0 of 2: {sentence}" in second


def test_processes_of_different_configs_are_refused(tmp_path, start):
  for _, errors in end(*start_two(start, tmp_path, second=["--config.optimizer.learning_rate=0.5"]), status=2):
    assert "the config's optimizer.learning_rate of process 1 differs from that of process 0" in errors


@pytest.mark.parametrize("what", ["data", *further("folder")])
def test_processes_of_different_files_are_refused(tmp_path, start, what):
  """The same names stand for other things in another working directory, as they may on another host."""
  folders = tmp_path / "0", tmp_path / "1"
  for number, folder in enumerate(folders):
    folder.mkdir()
    lines = 2000 + number * (what == "data")
    (folder / "own.txt").write_text("What one host reads, all of them should read.\n" * lines)
  source = ["--config.data.source=text:own.txt", "--config.eval.protocol=cold"]
  (_, first), (_, second) = end(*start_two(
    start, tmp_path / "run" if what == "data" else "run", *source, folders=folders), status=2)
  if what == "data":
    assert all("the data of process 1 differs from that of process 0" in errors for errors in (first, second))
  else:
    sentence = "run/checkpoints here is not the folder that process 0 writes to"
    assert sentence in second and "train.py: process 1 of 2: " in first and sentence in first


def test_the_failure_of_one_process_is_the_sentence_of_both(tmp_path, start):
  """One host's disk is full: it cannot write its part of a checkpoint, while the other waits for it."""
  small_files = "bash", "-c", 'ulimit -f 12; exec "$0" "$@"'  # no file above 12 KiB
  (_, first), (_, second) = end(
    *start_two(start, tmp_path, "--config.train.steps=100000", second_within=small_files), status=2)
  sentence = f"the checkpoint of step 2 could not be written under {tmp_path}/checkpoints (File too large)"
  assert f"train.py: {sentence}" in second and f"train.py: process 1 of 2: {sentence}" in first


def test_a_process_that_finds_no_other_ends_with_one_sentence(tmp_path, start):
  address = free_address()
  alone = start(
    tmp_path, "--distributed", f"--coordinator={address}", "--num_processes=2", "--process=1",
    LATTICE_JAX_JOIN_TIMEOUT="2")
  ((_, errors),) = end(alone, status=1)
  assert f"did not find each other within 2 s: process 0 does not answer at {address}" in errors
  assert errors.count("\n") == 1, errors


@pytest.mark.thorough
def test_hosts_with_disks_of_their_own_share_the_checkpoints_alone(tmp_path, start):
  """At the second start another host is process 0, and its disk is empty."""
  folders, far = (tmp_path / "0", tmp_path / "1"), tmp_path / "far"
  for folder in folders:
    folder.mkdir()
  elsewhere = f"--checkpoints={far}", "--config.train.save_every=2"
  end(*start_two(start, "run", *elsewhere, "--config.train.steps=2", folders=folders))
  assert (far / "2").is_dir() and (folders[0] / "run" / "run.json").exists() and not (folders[1] / "run").exists()
  (said, _), _ = end(*start_two(start, "run", *elsewhere, "--config.train.steps=4", folders=folders[::-1]))
  assert "resumed from the checkpoint of step 2" in said and (far / "4").is_dir()
