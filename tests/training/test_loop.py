"""What a run does at its boundaries, and what it says to users, on the tiny decoder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import time
import types

import jax
import numpy as np
import pytest

from lattice_jax import writers
from lattice_jax.checkpoint import Checkpoints, load_for_eval
from lattice_jax.files import read_jsonl
from lattice_jax.models.state_size import state_bytes
from lattice_jax.run_file import read_run
from lattice_jax.runtime import Stop
from lattice_jax.sharding import make_mesh
from lattice_jax.training import loop
from lattice_jax.training.feed import dispatch_size
from lattice_jax.training.reporter import peak_flops
from lattice_jax.training.state import abstract_state
from lattice_jax.training.workdir import locked
from tests.thorough import further
from tests.training import tiny


@pytest.fixture(autouse=True)
def _tiny_run(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  scores = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
  monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
  monkeypatch.setattr(loop, "evaluate_protocols", lambda *args, **kwargs: [types.SimpleNamespace(
    split="validation", protocol="cold", bits_per_byte=next(scores), nll_per_token=1.0, word_perplexity=None,
    accuracy=None, tokens=9, seconds=0.1, buckets=())])


class Recorder(writers.Writer):
  """Keeps what a run tells, and calls `on_update` after every update."""

  def __init__(self):
    self.events, self.notes, self.ends, self.on_update = [], [], [], lambda step: None

  def note(self, text):
    self.notes.append(text)

  def update(self, record):
    self.events.append(("update", record["step"]))
    self.on_update(record["step"])

  def report(self, record):
    self.events.append(("report", record["step"]))

  def evaluation(self, record):
    self.events.append(("evaluation", record["step"]))

  def flush(self):
    self.events.append(("save", self.events[-1][1]))

  def preempted(self):
    self.ends.append("preempted")

  def close(self, status):
    self.ends.append(status)


@pytest.fixture
def recorder(monkeypatch):
  recorder = Recorder()
  monkeypatch.setitem(writers.WRITERS, "recorder", lambda info: recorder)
  return recorder


def recorded_config(**changes):
  return tiny.make_config(train__writers=("jsonl", "recorder"), **changes)


def saved_state(config, workdir):
  checkpoints = Checkpoints(workdir)
  found = checkpoints.restore_latest(abstract_state(config, make_mesh(config.mesh, jax.devices()[:1])))
  checkpoints.close()
  return found


def test_order_of_events_does_not_depend_on_updates_per_call(tmp_path, recorder):
  events = []
  for per_dispatch in (1, 8):
    recorder.events = []
    config = recorded_config(train__eval_every=6, train__steps_per_dispatch=per_dispatch)
    loop.train(config, tmp_path / str(per_dispatch))
    events.append(recorder.events)
  assert events[0] == events[1]
  expected = []
  for step in range(1, 13):
    expected.append(("update", step))
    expected += [("report", step)] if step % 4 == 0 else []
    expected += [("evaluation", step)] if step in (6, 12) else []
    expected += [("save", step)] if step in (5, 6, 10, 12) else []  # an evaluated step is saved too
  assert events[0] == expected
  assert json.loads((tmp_path / "1" / "run.json").read_text())["config"]["train"]["steps"] == 12


def test_calls_end_at_boundaries():
  config = tiny.make_config(train__steps=20, train__steps_per_dispatch=8, train__save_every=10, train__eval_every=7)
  sizes, step = [], 0
  while step < 20:
    sizes.append(dispatch_size(config, step, (11, 12)))
    step += sizes[-1]
  assert sizes == [7, 3, 1, 1, 2, 6]


def test_last_and_best_checkpoints_are_kept(tmp_path):
  config = tiny.make_config(train__steps=10, train__save_every=2, train__eval_every=2, train__keep_last=1)
  loop.train(config, tmp_path)
  assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 10]


@pytest.mark.parametrize("number", [signal.SIGTERM, *further(signal.SIGINT)])
def test_signal_saves_and_the_same_command_goes_on(tmp_path, recorder, number):
  loop.train(recorded_config(), tmp_path / "unbroken")
  recorder.on_update = lambda step: os.kill(os.getpid(), number) if step == 7 else None
  with pytest.raises(Stop, match=f"stopped by {number.name} at step") as stopped:
    loop.train(recorded_config(), tmp_path / "stopped")
  assert stopped.value.status == 128 + number
  assert [note for note in recorder.notes if note.startswith(f"{number.name} received: the run saves and stops")]
  step, _ = saved_state(recorded_config(), tmp_path / "stopped")
  assert 7 <= step < 10
  recorder.on_update = lambda step: None
  loop.train(recorded_config(), tmp_path / "stopped")
  assert recorder.ends == [0, "preempted", 128 + number, 0]
  assert f"resumed from the checkpoint of step {step}" in " ".join(recorder.notes)
  tiny.assert_same_bits(
    saved_state(recorded_config(), tmp_path / "stopped"), saved_state(recorded_config(), tmp_path / "unbroken"))


def test_second_ctrl_c_aborts(tmp_path, recorder):
  def interrupt_twice(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)

  recorder.on_update = interrupt_twice
  with pytest.raises(KeyboardInterrupt):
    loop.train(recorded_config(), tmp_path)


def test_changed_model_or_data_is_refused_with_one_line_a_field(tmp_path):
  loop.train(tiny.make_config(train__steps=1), tmp_path)
  changed = tiny.make_config(
    train__steps=1, model__dim=18, data__batch=16, data__path="elsewhere", optimizer__learning_rate=0.1)
  with pytest.raises(ValueError, match="another model or other data") as refused:
    loop.train(changed, tmp_path)
  fields = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
  assert fields == ["model.dim: 16 → 18", "data.batch: 8 → 16"]


def test_changed_optimizer_state_is_refused_and_nothing_set_aside(tmp_path):
  loop.train(tiny.make_config(train__steps=1), tmp_path)
  with pytest.raises(ValueError, match="does not fit this config") as refused:
    loop.train(tiny.make_config(train__steps=2, optimizer__name="lion"), tmp_path)
  assert "opt_state/nu" in str(refused.value) and "init_from" in str(refused.value)
  assert (tmp_path / "checkpoints" / "1").is_dir()


def test_checkpoint_of_other_data_is_refused(tmp_path):
  config = tiny.make_config(train__steps=2)
  loop.train(config, tmp_path / "here")
  loop.train(tiny.make_config(train__steps=4, data__seed=1), tmp_path / "there")
  shutil.copytree(tmp_path / "there" / "checkpoints" / "4", tmp_path / "here" / "checkpoints" / "4")
  with pytest.raises(ValueError, match=r"checkpoint of step 4 in .* belongs to a run of another model or other data"):
    loop.train(tiny.make_config(train__steps=6), tmp_path / "here")
  shutil.rmtree(tmp_path / "here" / "checkpoints" / "4")
  loop.train(config, tmp_path / "here")


def test_a_run_older_than_a_config_field_goes_on_with_its_default(tmp_path):
  loop.train(tiny.make_config(train__steps=4), tmp_path)
  run = read_run(tmp_path)
  del run["config"]["model"]["vq"]["window"]
  (tmp_path / "run.json").write_text(json.dumps(run))
  vq = dataclasses.replace(tiny.make_config().model.vq, reduction="serial")  # changes cost alone, as the other two
  other = tiny.make_config(train__steps=5, model__remat="full", model__xent_chunk=32, model__vq=vq)
  assert int(loop.train(other, tmp_path).step) == 5


def test_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch, recorder):
  config = tiny.make_config(train__writers=("jsonl", "tensorboard", "recorder"))
  loop.train(config, tmp_path / "steady")
  now = itertools.count(2e9, -1000.0)
  monkeypatch.setattr(time, "time", lambda: next(now))
  recorder.on_update = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
  with pytest.raises(Stop):
    loop.train(config, tmp_path / "back")
  recorder.on_update = lambda step: None
  loop.train(config, tmp_path / "back")
  tiny.assert_same_bits(saved_state(config, tmp_path / "back"), saved_state(config, tmp_path / "steady"))
  for record in read_jsonl(tmp_path / "back" / "metrics.jsonl"):
    assert all(value >= 0 for name, value in record.items() if name.startswith("time_"))


def test_sizes_and_more_rows_than_tokens_are_told(tmp_path, recorder):
  config = recorded_config(train__steps=1, model__vocab=300)
  loop.train(config, tmp_path)
  size = state_bytes(config.model, 0).text()
  assert any(f"memory of a row and layer {size} bytes" in note for note in recorder.notes)
  assert any("model.vocab=300 has 41 more rows than data.tokenizer=bytes has tokens" in note for note in recorder.notes)


def test_non_finite_loss_is_dumped_and_the_dump_replays_it(tmp_path, recorder):
  config = recorded_config(optimizer__learning_rate=1e38, optimizer__clip_norm=0.0, train__steps_per_dispatch=4)
  with pytest.raises(Stop, match="is not finite") as stopped:
    loop.train(config, tmp_path)
  assert stopped.value.status == 1 and recorder.ends == [1]
  (folder,) = tmp_path.glob("nan_step_*")
  step = int(folder.name.removeprefix("nan_step_"))
  with np.load(folder / "batch_0.npz") as batch:
    assert batch["tokens_BT"].shape == (8, 16)
  with pytest.raises(Stop, match=f"after step {step} is not finite"):
    loop.train(config, folder)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved_state(config, folder)[1].params))


def test_skipped_updates_are_told_and_written_as_null(tmp_path, recorder):
  loop.train(tiny.make_config(train__steps=1), tmp_path / "good")
  step, state = saved_state(tiny.make_config(), tmp_path / "good")
  params = jax.tree.map(lambda leaf: leaf * np.nan, state.params)
  bad = Checkpoints(tmp_path / "bad")
  bad.save(step, state.replace(params=params), {})
  bad.wait()
  bad.close()
  config = recorded_config(train__steps=2, train__nan_skips=5)
  loop.train(config, tmp_path / "new", init_from=tmp_path / "bad")
  record = json.loads((tmp_path / "new" / "metrics.jsonl").read_text().splitlines()[0])
  assert record["loss"] is None and record["skipped"] == 1
  assert sum("was skipped" in note for note in recorder.notes) == 2


def test_init_from_takes_parameters_and_buffers_only(tmp_path):
  loop.train(tiny.make_config(train__steps=3), tmp_path / "first")
  state = loop.train(
    tiny.make_config(train__steps=1, optimizer__learning_rate=1e-30), tmp_path / "second",
    init_from=tmp_path / "first")
  _, params, _, step = load_for_eval(tmp_path / "first")
  tiny.assert_same_bits(state.params, params)
  assert step == 3 and int(state.step) == 1


def test_two_processes_in_one_workdir_are_refused(tmp_path):
  with locked(tmp_path), pytest.raises(ValueError, match="another process is training"):
    loop.train(tiny.make_config(), tmp_path)


def test_workdir_that_cannot_be_made_is_one_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="cannot be written to"):
    loop.train(tiny.make_config(), tmp_path / "file" / "run")


@pytest.mark.parametrize(("changes", "message"), [
  ({"train__writers": ("stduot",)}, "train.writers names 'stduot'"),
  ({"model__vocab": 100}, "set model.vocab=259"),
  ({"mesh__data": 3}, "is not the number of devices"),
])
def test_what_cannot_run_is_refused_before_it_starts(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    loop.train(tiny.make_config(**changes), tmp_path)


def test_shorter_run_than_the_workdir_is_refused(tmp_path):
  loop.train(tiny.make_config(train__steps=3), tmp_path)
  config = tiny.make_config(train__steps=2)
  with pytest.raises(ValueError, match=r"beyond train\.steps=2"):
    loop.train(config, tmp_path)
  loop.train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), tmp_path)


def test_trace_of_some_updates(tmp_path):
  loop.train(tiny.make_config(train__steps=5), tmp_path, profile=(2, 4))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_what_is_changed_at_a_resume_is_told_and_its_old_value_kept(tmp_path, recorder):
  loop.train(recorded_config(train__steps=2), tmp_path)
  assert read_run(tmp_path)["history"] == []
  changed = {"train__steps": 4, "optimizer__learning_rate": 0.25, "optimizer__schedule": "constant"}
  recorder.notes.clear()
  loop.train(recorded_config(**changed), tmp_path)
  told = [note for note in recorder.notes if note.startswith("changed")]
  assert told == [f"changed since the last start: {change}" for change in (
    "optimizer.learning_rate: 0.001 → 0.25", "optimizer.schedule: cosine → constant", "train.steps: 2 → 4")]
  loop.train(recorded_config(**changed), tmp_path)  # nothing new
  loop.train(recorded_config(**changed | {"train__steps": 5}), tmp_path)
  first, second = read_run(tmp_path)["history"]
  assert first["step"] == 2 and first["time"] <= second["time"] and second["step"] == 4
  assert first["changes"] == {
    "optimizer.learning_rate": [0.001, 0.25], "optimizer.schedule": ["cosine", "constant"], "train.steps": [2, 4]}
  assert second["changes"] == {"train.steps": [4, 5]} and read_run(tmp_path)["config"]["train"]["steps"] == 5


def test_another_version_of_the_program_is_a_change(tmp_path, recorder):
  loop.train(recorded_config(train__steps=2), tmp_path)
  run = read_run(tmp_path)
  del run["history"]  # as runs were before they had one
  (tmp_path / "run.json").write_text(json.dumps(run | {"versions": run["versions"] | {"jax": "0.1"}}))
  loop.train(recorded_config(train__steps=2), tmp_path)
  (entry,) = read_run(tmp_path)["history"]
  assert entry["changes"] == {"versions.jax": ["0.1", jax.__version__]}


@pytest.mark.parametrize(("removed", "named", "is_stopped"), [
  (".", "run/.*", True), ("metrics.jsonl", "metrics.jsonl", False), ("run.json", "run.json", True),
  *further(("tensorboard", "tensorboard/events.out.tfevents.000002", False), ("checkpoints", "checkpoints/1", True))])
def test_what_is_removed_while_a_run_goes_on_is_noticed(tmp_path, recorder, removed, named, is_stopped):
  config = tiny.make_config(train__steps=1, train__writers=("jsonl", "tensorboard", "recorder"))
  loop.train(config, tmp_path / "run")

  def remove(step):
    if step == 3:
      path = tmp_path / "run" / removed
      (shutil.rmtree if path.is_dir() else os.unlink)(path)
      if is_stopped:
        os.kill(os.getpid(), signal.SIGTERM)

  recorder.on_update = remove
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5))
  with pytest.raises(ValueError, match=f"{named} is gone: something else removed it during the run"):
    loop.train(config, tmp_path / "run")


def test_a_metrics_file_that_was_replaced_is_noticed(tmp_path, recorder):
  def replace(step):
    if step == 7:
      shutil.copy(tmp_path / "metrics.jsonl", tmp_path / "copy")
      (tmp_path / "copy").rename(tmp_path / "metrics.jsonl")

  recorder.on_update = replace
  with pytest.raises(ValueError, match=r"metrics\.jsonl is gone"):
    loop.train(recorded_config(), tmp_path)


def test_saves_and_what_to_do_next_are_told(tmp_path, recorder):
  loop.train(tiny.make_config(train__writers=("tensorboard", "recorder")), tmp_path)
  assert f"curves: tensorboard --logdir={tmp_path}/tensorboard (pip install tensorboard)" in recorder.notes
  assert [note for note in recorder.notes if note.startswith("saved")] == [
    f"saved the checkpoint of step {step}" for step in (5, 10, 12)]
  assert recorder.notes[-1] == f"done; next: python eval.py --workdir={tmp_path}"


def test_share_of_the_peak_is_told_where_a_data_sheet_has_one(monkeypatch):
  assert peak_flops() is None
  devices = [types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")]
  monkeypatch.setattr(jax, "devices", lambda: devices)
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  assert peak_flops() == 2 * 989e12
