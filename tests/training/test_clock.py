"""A clock that jumps by years, back and forth, changes nothing of a run but the times on its event files."""

from __future__ import annotations

import itertools
import time

from lattice_jax.files import read_jsonl
from lattice_jax.inspect.same_run import differences
from lattice_jax.training import loop
from tests.training import tiny

YEARS = 365 * 86_400


def jump_at_every_look(monkeypatch):
  """The system's clock, for all of Python; `perf_counter` and `monotonic` cannot be set. Returns the times it told."""
  real, jumps, told = time.time, itertools.cycle((0, 10 * YEARS, -5 * YEARS, 3600, -3600)), []

  def jumped():
    told.append(real() + next(jumps))
    return told[-1]

  monkeypatch.setattr(time, "time", jumped)
  monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumped()))
  return told


def test_a_run_and_its_resume_under_a_jumping_clock_are_those_of_a_steady_one(tmp_path, monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config = tiny.make_config(train__save_every=3, train__eval_every=6, train__writers=("jsonl", "tensorboard"))
  loop.train(config, tmp_path / "steady")
  told = jump_at_every_look(monkeypatch)
  loop.train(tiny.make_config(
    train__steps=7, train__save_every=3, train__eval_every=6, train__writers=("jsonl", "tensorboard")),
    tmp_path / "jumping")
  loop.train(config, tmp_path / "jumping")
  assert max(told) - min(told) > 10 * YEARS, "something looked at the clock"
  assert differences(tmp_path / "jumping", tmp_path / "steady") == []
  kept = [{path.name for path in (tmp_path / name / "checkpoints").iterdir()} for name in ("jumping", "steady")]
  assert kept[0] - {"7"} == kept[1] - {"9"} or kept[0] == kept[1]
  for line in read_jsonl(tmp_path / "jumping" / "metrics.jsonl"):
    if "split" not in line:
      assert 0 < line["time_step"] < 600 and 0 <= line["time_elapsed"] < 600 and line["tokens_per_second"] > 0
