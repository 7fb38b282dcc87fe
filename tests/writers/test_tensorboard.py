"""What TensorBoard itself reads from the event files of a run that was cut off and resumed."""

from __future__ import annotations

import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lattice_jax.writers import RunInfo, Writers


def write(workdir, start_step, steps, *, loss):
  writers = Writers(("tensorboard",), RunInfo(workdir, start_step, {}))
  for step in steps:
    writers.report({"step": step, "total": 99, "loss": loss, "mfu": None})
  writers.close()


def read(workdir, name="train/loss"):
  accumulator = EventAccumulator(str(workdir / "tensorboard"))
  accumulator.Reload()
  return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_resumed_run_voids_the_steps_after_its_start(tmp_path):
  write(tmp_path, 0, (10, 20, 30, 40), loss=1.0)
  write(tmp_path, 20, (30, 40, 50), loss=2.0)
  assert read(tmp_path) == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0), (50, 2.0)]


def test_record_cut_off_by_a_kill_hides_nothing_else(tmp_path):
  write(tmp_path, 0, (10, 20, 30), loss=1.0)
  (file,) = (tmp_path / "tensorboard").iterdir()
  file.write_bytes(file.read_bytes()[:-5])
  write(tmp_path, 20, (30,), loss=2.0)
  assert read(tmp_path) == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
  write(tmp_path, 0, (10, 20), loss=1.0)
  monkeypatch.setattr(time, "time", lambda: 1000.0)
  write(tmp_path, 10, (20, 30), loss=2.0)
  write(tmp_path, 20, (30, 40), loss=3.0)  # within the same second, too
  assert read(tmp_path) == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 3.0)]


def test_evaluations_have_curves_of_their_own(tmp_path):
  writers = Writers(("tensorboard",), RunInfo(tmp_path, 0, {}, "dim"))
  writers.evaluation({"step": 5, "split": "validation", "protocol": "cold", "bits_per_byte": 3.5})
  writers.close()
  assert read(tmp_path, "eval_validation_cold/bits_per_dim") == [(5, 3.5)]
