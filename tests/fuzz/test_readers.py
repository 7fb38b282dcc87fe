"""Every reader that scripts/fuzz.py fuzzes, with a fixed draw of damaged inputs, and inputs that were faults once."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest

from lattice_jax.checkpoint_folder import stored_folder
from lattice_jax.models.saved_state import load_state
from lattice_jax.run_file import FILE, read_config
from lattice_jax.sweep.sweep_file import read_sweep
from lattice_jax.sweep.trials import read_record
from lattice_jax.writers.wandb import read_sent
from tests.fuzz import run_files
from tests.fuzz.harness import Reader, Trial, fault_of_sentence
from tests.fuzz.mutants import mutants
from tests.fuzz.readers import NAMES, find_reader

COUNTS = {"checkpoint": 2, "gguf": 25, "overrides": 40, "run": 40}  # those of which an input takes longest
ALL = [name for names in NAMES.values() for name in names]


# Orbax leaves coroutines unawaited where a read fails; they are collected inside the test that caused them.
@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine.*was never awaited",
  "ignore:invalid value encountered:RuntimeWarning", "ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ALL)
def test_damaged_inputs_are_read_or_refused_in_a_sentence(name, tmp_path):
  trial = Trial(find_reader(name), tmp_path)
  faults = [(data, fault) for data in mutants(trial.seeds(), random.Random(0), COUNTS[name] if name in COUNTS else 100)
            if (fault := trial.fault(data)) is not None]
  assert not faults


def test_faults_are_seen(tmp_path):
  def make(folder):
    (folder / "a").write_bytes(b"x" * 99)
    return ("a",)

  def read(folder):
    raw = (folder / "a").read_bytes()
    if raw == b"sentence":
      raise ValueError("the file a says sentence; write another.")
    if raw == b"word":
      raise ValueError("word")
    return raw.decode() if raw != b"whole" else {}["x"]

  trial = Trial(Reader("toy", make, read, ()), tmp_path)
  assert trial.fault(b"\0y") is None and trial.fault(b"") is None and trial.fault(b"\0sentence") is None
  assert "no sentence" in trial.fault(b"\0word")
  for data, error in ((b"\0\xff", UnicodeDecodeError), (b"\0whole", KeyError)):
    with pytest.raises(error):
      trial.fault(data)
  assert (tmp_path / "whole" / "a").read_bytes() == b"x" * 99
  assert fault_of_sentence("two\nlines of text") and not fault_of_sentence("one line of text")


def refused(function, *arguments):
  """The sentence of a refusal."""
  with pytest.raises(ValueError) as caught:
    function(*arguments)
  assert type(caught.value) is ValueError and fault_of_sentence(str(caught.value)) is None
  return str(caught.value)


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int ''", "!!float ''", "!!bool x"])
def test_a_value_that_its_tag_does_not_allow(value, tmp_path):
  (tmp_path / "a.yaml").write_text(f"name: {value}")
  assert "a value that its tag does not allow" in refused(read_sweep, tmp_path / "a.yaml")


def change_about(path, **changes):
  """A saved state whose description says something else; a value of `...` is left out."""
  raw = path.read_bytes()
  size = int.from_bytes(raw[:8], "little")
  header = json.loads(raw[8:8 + size])
  about = json.loads(header["__metadata__"]["about"]) | changes
  header["__metadata__"]["about"] = json.dumps({name: value for name, value in about.items() if value is not ...})
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size:])


@pytest.mark.parametrize(("changes", "message"), [
  ({"max_len": ...}, "is no saved state"), ({"batch": ...}, "is no saved state"), ({"model": ...}, "is no saved state"),
  ({"weights": ...}, "is no saved state"), ({"batch": -1}, "is no saved state"), ({"batch": True}, "is no saved state"),
  ({"max_len": {"": {}}}, "is no saved state"), ({"max_len": 2**40}, "is no saved state"), ({"model": 1}, "is no sav"),
  ({"model": dataclasses.asdict(run_files._MODEL) | {"1ecords": 1}}, "model.1ecords='1', which this version does not"),
], ids=lambda value: str(value)[:40])
def test_a_saved_state_that_says_something_else_of_itself(changes, message, tmp_path):
  (file,) = run_files.make_state(tmp_path)
  change_about(tmp_path / file)
  run_files.read_saved_state(tmp_path)
  change_about(tmp_path / file, **changes)
  assert message in refused(load_state, tmp_path / file, run_files._MODEL, run_files._variables())


@pytest.mark.parametrize("model", [
  {"baseline": {"heads": 2}, "delta": 3}, {"local": {"far": "moments", "summary": 3}},
  {"cache": {"window": 4, "full": 3, "records": True}}])
def test_a_stored_config_with_something_else_in_the_place_of_a_section(model, tmp_path):
  run_files.make_run(tmp_path)
  run = json.loads((tmp_path / FILE).read_text())
  run["config"]["model"] |= model
  (tmp_path / FILE).write_text(json.dumps(run))
  assert "holds a config that does not fit" in refused(read_config, tmp_path)


@pytest.mark.parametrize("place", [3, "", "a\0b", ["x"]])
def test_a_run_whose_checkpoints_lie_nowhere(place, tmp_path):
  (tmp_path / FILE).write_text(json.dumps({"checkpoints": place}))
  assert "which is no folder" in refused(stored_folder, tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"[]", b"{}", b"[" * 10_000])
def test_a_damaged_record_of_a_trial_or_of_what_was_sent(raw, tmp_path):
  run_files.make_trial(tmp_path)
  (tmp_path / "a" / "trial.json").write_bytes(raw)
  (tmp_path / "sent.json").write_bytes(raw)
  assert "remove" in refused(read_record, tmp_path / "a")
  assert "remove it to start a new W&B run" in refused(read_sent, tmp_path / "sent.json")


@pytest.mark.parametrize(
  ("name", "value"), [("index", "x"), ("values", []), ("state", "odd"), ("seconds", "1"), ("x", 1)])
def test_a_record_of_a_trial_with_another_field(name, value, tmp_path):
  run_files.make_trial(tmp_path)
  record = json.loads((tmp_path / "a" / "trial.json").read_text())
  (tmp_path / "a" / "trial.json").write_text(json.dumps(record | {name: value}))
  assert "is not the record of a trial" in refused(read_record, tmp_path / "a")


@pytest.mark.parametrize("line", [b'{"prompt": "\\ud800", "answer": "x"}', b"[" * 10_000])
def test_a_recorded_unit_that_utf_8_cannot_hold(line, tmp_path):
  run_files.make_rollout(tmp_path)
  (tmp_path / "prompts.jsonl").write_bytes(line + b"\n")
  assert "line 1 of" in refused(run_files.read_rollout, tmp_path)
