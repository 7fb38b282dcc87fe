"""A clock that jumps by a minute in a run, and by years before its resume, changes only the times on event files.

Orbax measures how long a save may take by this clock: one that jumps forward by more than that while a
checkpoint is written makes the save fail, which is one sentence, and the same command goes on.
"""

from __future__ import annotations

import itertools
import time

import pytest

from lattice_jax import writers
from lattice_jax.files import read_jsonl
from lattice_jax.inspect.same_run import differences
from lattice_jax.training import loop
from tests.training import tiny

YEARS = 365 * 86_400


def jump_at_every_look(monkeypatch, offset):
  """The system's clock, for all of Python; `perf_counter` and `monotonic` cannot be set. Returns the times it told."""
  real, jumps, told = time.time, itertools.cycle((0, 60, -60, 30, -30)), []

  def jumped():
    told.append(real() + offset + next(jumps))
    return told[-1]

  monkeypatch.setattr(time, "time", jumped)
  monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumped()))
  return told


class Stopper(writers.Writer):
  """Ends a run in the midst of it, while `is_on`."""

  is_on = False

  def update(self, record):
    if self.is_on and record["step"] == 8:
      raise ValueError("stopped by the test at step 8.")


def test_a_run_and_its_resume_under_a_jumping_clock_are_those_of_a_steady_one(tmp_path, monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  monkeypatch.setitem(writers.WRITERS, "stopper", lambda info: Stopper())
  config = tiny.make_config(
    train__save_every=3, train__eval_every=6, train__writers=("jsonl", "tensorboard", "stopper"))
  loop.train(config, tmp_path / "steady")
  with monkeypatch.context() as first:
    told = jump_at_every_look(first, 5 * YEARS)
    first.setattr(Stopper, "is_on", True)
    with pytest.raises(ValueError, match="stopped by the test"):
      loop.train(config, tmp_path / "jumping")
  assert told, "something looks at the clock"
  jump_at_every_look(monkeypatch, -5 * YEARS)  # what was saved lies in the future
  loop.train(config, tmp_path / "jumping")
  assert differences(tmp_path / "jumping", tmp_path / "steady") == []
  kept, kept_steady = (sorted(path.name for path in (tmp_path / run / "checkpoints").iterdir())
                       for run in ("jumping", "steady"))
  assert kept == kept_steady and "12" in kept
  for line in read_jsonl(tmp_path / "jumping" / "metrics.jsonl"):
    if "split" not in line:
      assert 0 < line["time_step"] < 600 and 0 <= line["time_elapsed"] < 600 and line["tokens_per_second"] > 0
