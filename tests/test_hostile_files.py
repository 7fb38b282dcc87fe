"""Files of a workdir that are damaged, or never were such files: one sentence each, and nothing whole is lost."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config_checks import to_dict
from lattice_jax.metrics import read_metric_lines
from lattice_jax.run_file import read_config, read_run
from lattice_jax.training.start import add_history
from lattice_jax.training.workdir import check_same_run
from lattice_jax.writers.jsonl import JsonlWriter
from tests.training import tiny

CONFIG = tiny.make_config()
RUN = {
  "config": to_dict(CONFIG), "data_fingerprint": "ab", "unit": "byte", "parameters": 7, "git_commit": None,
  "versions": {"jax": "0.1"}, "history": []}
VALUES = (None, True, -1, 0.5, 10**400, "", "x", [], [1], {}, {"x": 1}, [[[]]])
NOT_JSON = (b"", b"\n", b"{", b"\xff\xfe{}", b"\x00\x00\x00{", b"[" * 100_000, b"1" * 5000, b"{}{}", b"\x80")


def text(value):
  return json.dumps(value).encode()


def without(record, name):
  return {key: value for key, value in record.items() if key != name}


def hostile_runs():
  """Contents of a run.json that cannot be gone on with."""
  yield from NOT_JSON
  yield from (text(value) for value in VALUES)
  for name in ("config", "data_fingerprint"):
    yield text(without(RUN, name))
  wrong = {"config": dict, "data_fingerprint": str, "unit": str, "versions": dict, "history": list}
  for name, kind in wrong.items():
    yield from (text(RUN | {name: value}) for value in VALUES if not isinstance(value, kind))
  for section in RUN["config"]:
    if isinstance(RUN["config"][section], dict):
      values = [value for value in VALUES if value != {}]
      yield from (text(RUN | {"config": RUN["config"] | {section: value}}) for value in values)
  model = RUN["config"]["model"]
  for field, value in (("dim", "wide"), ("dim", 0), ("layers", None), ("vq", 3), ("vq", {"codes": "many"})):
    yield text(RUN | {"config": RUN["config"] | {"model": model | {field: value}}})


def assert_is_a_sentence(error):
  words = str(error.value)
  assert len(words) < 1000 and "Traceback" not in words and "object at 0x" not in words and "Errno" not in words


def test_hostile_run_files_are_each_one_sentence(tmp_path):
  variants = list(hostile_runs())
  assert len(variants) > 100
  for content in variants:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError) as refused:
      run = read_run(tmp_path, "config", "data_fingerprint")
      check_same_run(tmp_path, run, CONFIG, "ab")
      add_history(RUN, run, 3)
      pytest.fail(f"accepted {content[:200]!r}")
    assert_is_a_sentence(refused)


@pytest.mark.parametrize("place", ["folder", "link to nothing", "link to itself"])
def test_what_is_no_file_is_one_sentence(tmp_path, place):
  path = tmp_path / "run.json"
  if place == "folder":
    path.mkdir()
  else:
    path.symlink_to(tmp_path / ("nothing" if place == "link to nothing" else "run.json"))
  with pytest.raises(ValueError, match=r"run\.json (is missing|cannot be read)") as refused:
    read_config(tmp_path)
  assert_is_a_sentence(refused)


def hostile_lines():
  """What may stand in a metrics.jsonl and is no line of it."""
  yield from (content.replace(b"\n", b"") for content in NOT_JSON)
  yield from (text(value) for value in VALUES)
  yield from (text({"step": value, "loss": 1.0}) for value in VALUES if value != 10**400)
  yield from (text({"step": 2, "split": value, "protocol": "cold"}) for value in VALUES if not isinstance(value, str))
  yield text({"step": 2, "split": "validation"})


def test_damaged_lines_are_told_by_number_and_every_whole_line_is_kept(tmp_path, capfd):
  path = tmp_path / "metrics.jsonl"
  bad, good = list(hostile_lines()), [{"step": step, "loss": 1.0 / step} for step in range(1, 100)]
  lines = [part for pair in zip(bad, map(text, good), strict=False) for part in pair]
  path.write_bytes(b"".join(line + b"\n" for line in lines) + b'{"step": 99, "lo')
  kept = good[:len(bad)]
  assert len(bad) > 30 and read_metric_lines(path) == kept
  said = capfd.readouterr().err.splitlines()
  assert [line.split(" of ")[0] for line in said] == [f"line {2 * number + 1}" for number in range(len(bad))]
  JsonlWriter(path, start_step=20).close()
  assert path.read_bytes() == b"".join(text(record) + b"\n" for record in kept[:20])
  capfd.readouterr()
  assert read_metric_lines(path) == kept[:20] and capfd.readouterr().err == ""


def test_a_folder_in_the_place_of_the_metrics_is_one_sentence(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(ValueError, match=r"metrics\.jsonl cannot be read \(Is a directory\)"):
    read_metric_lines(tmp_path / "metrics.jsonl")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints of steps 1 and 2."""
  folder = tmp_path_factory.mktemp("saved")
  checkpoints = Checkpoints(folder, keep_last=2, keep_best=1)
  for step in (1, 2):
    checkpoints.save(step, {"weight": jnp.ones(3)}, RUN, score=1.0)
  checkpoints.wait()
  checkpoints.close()
  return folder


def hostile_metadata():
  yield from NOT_JSON
  yield from (text(value) for value in VALUES)


# Orbax leaves coroutines unawaited where a read fails; they are collected inside the test that caused them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine.*was never awaited")
@pytest.mark.parametrize("file", ["run/metadata", "state/_METADATA", "metrics/metrics", "_CHECKPOINT_METADATA"])
def test_hostile_metadata_costs_its_checkpoint_at_most(saved, tmp_path, file, capfd):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {"weight": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=place)}
  for number, content in enumerate(hostile_metadata()):
    workdir = shutil.copytree(saved, tmp_path / str(number))
    (workdir / "checkpoints" / "2" / file).write_bytes(content)
    try:
      checkpoints = Checkpoints(workdir, keep_last=2, keep_best=1)
    except ValueError as error:
      assert "cannot be used for checkpoints" in str(error)
      continue
    step, _ = checkpoints.restore_latest(abstract)
    checkpoints.run_of(step)
    checkpoints.close()
    said = capfd.readouterr().err
    if step == 1:
      assert said.count("\n") == 1 and "The checkpoint of step 2" in said and "cannot be read" in said
    else:
      assert not said
