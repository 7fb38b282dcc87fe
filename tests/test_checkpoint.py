"""Checkpoints come back bit for bit on any number of devices, and a damaged one costs only itself."""

from __future__ import annotations

import errno
import gc
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lattice_jax import checkpoint, processes
from lattice_jax.checkpoint import Checkpoints, load_for_eval, load_variables
from lattice_jax.models.content import checksums
from lattice_jax.sharding import make_mesh
from lattice_jax.training.state import abstract_state
from tests.thorough import further
from tests.training import tiny


@flax.struct.dataclass
class State:
  params: dict
  memory: tuple


def make_state(step):
  leaf = jax.random.normal(jax.random.key(step), (64, 64))
  return State(params={"weight": leaf, "count": jnp.asarray(step)}, memory=())


def abstract(sharding=None):
  place = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), make_state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Checkpoints of steps 1, 2 and 3."""
  folder = tmp_path_factory.mktemp("saved")
  checkpoints = Checkpoints(folder, keep_last=5)
  for step in (1, 2, 3):
    checkpoints.save(step, make_state(step), {"step": step})
  checkpoints.wait()
  checkpoints.close()
  return folder


@pytest.fixture
def workdir(saved, tmp_path):
  """Those checkpoints, to be spoilt."""
  return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def restore(workdir):
  checkpoints = Checkpoints(workdir, keep_last=5)
  found = checkpoints.restore_latest(abstract())
  return checkpoints, found


def truncate(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(content)


def steps_after(workdir, saves, **keep):
  """The steps on disk after one process has saved {step: bits per byte or None}."""
  checkpoints = Checkpoints(workdir, **keep)
  for step, score in saves.items():
    checkpoints.save(step, make_state(step), {"step": step}, score=score)
  checkpoints.wait()
  checkpoints.close()
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_the_best_checkpoint_of_an_earlier_process_stays(tmp_path):
  assert steps_after(tmp_path, {1: 2.5, 2: 2.0, 3: None}, keep_last=1, keep_best=1) == [2, 3]
  assert steps_after(tmp_path, {4: 3.0, 5: None, 6: None}, keep_last=1, keep_best=1) == [2, 6]
  assert steps_after(tmp_path, {7: 1.5, 8: None, 9: None}, keep_last=1, keep_best=1) == [7, 9]


@pytest.mark.parametrize("content", ['{"a": 1}', '{"bits_per_byte": "1"}', '{"bits_per_byte": NaN}'])
def test_a_checkpoint_with_a_damaged_score_is_never_the_best(tmp_path, content):
  steps_after(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0}, keep_last=3)
  (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text(content)
  assert steps_after(tmp_path, {4: None}, keep_last=1, keep_best=1) == [2, 4]


# Orbax leaves coroutines unawaited where a read fails; they are collected inside the test that caused them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine.*was never awaited")
@pytest.mark.parametrize(
  "damage", [truncate, *further(flip, lambda path: path.unlink())], ids=["truncated", "flipped", "missing"])
@pytest.mark.parametrize("file", ["state/_METADATA", "largest", *further("state/manifest.ocdbt")])
def test_damaged_newest_checkpoint_falls_back_and_says_so(workdir, capfd, damage, file):
  folder = workdir / "checkpoints" / "3"
  files = [path for path in folder.rglob("*") if path.is_file()]
  damage(max(files, key=lambda path: path.stat().st_size) if file == "largest" else folder / file)
  checkpoints, (step, state) = restore(workdir)
  assert step == 2
  tiny.assert_same_bits(state, make_state(2))
  said = [line for line in capfd.readouterr().err.splitlines() if "cannot be read" in line]
  assert len(said) == 1 and "step 3" in said[0] and "going back to step 2" in said[0]
  assert (workdir / "unreadable_checkpoints" / "3").is_dir()
  checkpoints.save(3, make_state(3), {})
  checkpoints.wait()
  assert checkpoints.restore_latest(abstract())[0] == 3
  checkpoints.close()
  gc.collect()


def test_deleted_newest_checkpoint_falls_back(workdir):
  shutil.rmtree(workdir / "checkpoints" / "3")
  checkpoints, (step, _) = restore(workdir)
  checkpoints.close()
  assert step == 2


def test_half_written_checkpoint_is_not_seen(workdir):
  (workdir / "checkpoints" / "3").rename(workdir / "checkpoints" / "3.orbax-checkpoint-tmp")
  checkpoints, (step, _) = restore(workdir)
  checkpoints.close()
  assert step == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine.*was never awaited")
def test_no_readable_checkpoint_is_one_sentence_and_changes_nothing(workdir):
  for step in (1, 2, 3):
    (workdir / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
  with pytest.raises(ValueError, match=r"no checkpoint in .* can be read") as refused:
    restore(workdir)
  assert "\n" not in str(refused.value)
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]
  gc.collect()


def test_a_process_that_dies_while_all_read_is_no_damage(workdir, monkeypatch):
  def lost(*args):
    raise RuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

  monkeypatch.setattr(processes, "are_joined", lambda: True)
  monkeypatch.setattr(checkpoint, "_read", lost)
  with pytest.raises(RuntimeError, match="Gloo AllGather failed"):
    restore(workdir)
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3"]


def test_empty_workdir_has_no_checkpoint(tmp_path):
  checkpoints, found = restore(tmp_path)
  checkpoints.close()
  assert found is None
  with pytest.raises(ValueError, match="holds no checkpoints"):
    load_variables(tmp_path, {})


def test_full_disk_is_one_sentence_that_says_where_to_resume(workdir, monkeypatch):
  checkpoints = Checkpoints(workdir)

  def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(checkpoints._manager, "save", fail)
  with pytest.raises(ValueError, match=r"No space left on device.*resumes from step 3"):
    checkpoints.save(4, make_state(4), {})
  checkpoints.close()


def test_saved_state_is_not_touched_by_later_donation(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  state = make_state(1)
  double = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2, state), donate_argnums=0)
  checkpoints.save(1, state, {})
  for _ in range(20):
    state = double(state)
  checkpoints.wait()
  _, restored = checkpoints.restore_latest(abstract())
  checkpoints.close()
  tiny.assert_same_bits(restored, make_state(1))


def test_arrays_move_between_one_and_eight_devices_unchanged(tmp_path):
  mesh = Mesh(np.asarray(jax.devices()).reshape(8), ("data",))
  state = make_state(1)
  for step, sharding in enumerate((None, NamedSharding(mesh, PartitionSpec()), None)):
    checkpoints = Checkpoints(tmp_path, keep_last=5)
    checkpoints.save(step, state, {})
    checkpoints.wait()
    _, state = checkpoints.restore_latest(abstract(sharding))
    checkpoints.close()
    assert len(state.params["weight"].sharding.device_set) == (8 if sharding else 1)
  tiny.assert_same_bits(state, make_state(1))


def test_training_goes_on_with_eight_devices_and_back(tmp_path, monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config, devices = tiny.make_config(), jax.devices()
  start, _ = tiny.run_updates(config, 3)
  expected = jax.device_get(start)
  _, after_one = tiny.run_updates(config, 1, state=start, first_step=3)
  state = jax.device_put(expected)
  for step, place in ((1, devices), (2, devices[:1])):
    checkpoints = Checkpoints(tmp_path, keep_last=5)
    checkpoints.save(step, state, {})
    checkpoints.wait()
    mesh = make_mesh(config.mesh, place)
    _, state = checkpoints.restore_latest(abstract_state(config, mesh))
    checkpoints.close()
    tiny.assert_same_bits(jax.device_get(state), expected)
    copy = jax.tree.map(jnp.copy, state)
    _, metrics = tiny.run_updates(config, 1, state=copy, first_step=3, devices=place)
    assert metrics[0]["loss"] == pytest.approx(after_one[0]["loss"], rel=1e-5)
    assert len(state.params["embedding"].sharding.device_set) == len(place)


def test_checksums_see_one_bit_and_an_exchange_and_no_sharding():
  state = make_state(1)
  weight = state.params["weight"]
  bits = jax.lax.bitcast_convert_type(weight, jnp.uint32)
  flipped = jax.lax.bitcast_convert_type(bits.at[63, 63].add(1), jnp.float32)
  for other in (flipped, weight[::-1], weight.T):
    assert checksums({"weight": other}) != checksums({"weight": weight})
  mesh = Mesh(np.asarray(jax.devices()).reshape(8), ("data",))
  sharded = jax.device_put(weight, NamedSharding(mesh, PartitionSpec("data")))
  assert checksums({"weight": sharded}) == checksums({"weight": weight})


def test_step_that_is_not_there_names_those_that_are(workdir):
  with pytest.raises(ValueError, match="no checkpoint of step 7; it has 1, 2, 3"):
    load_variables(workdir, {"params": {}}, step=7)


def test_folder_that_is_no_workdir_is_one_sentence(tmp_path):
  with pytest.raises(ValueError, match="is not the workdir of a training run"):
    load_for_eval(tmp_path)


def other_state(step):
  return State(params={"weight": jnp.zeros((3, 3)), "count": jnp.asarray(step)}, memory=())


# As above: a folder that is no checkpoint costs itself, with one line.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine.*was never awaited")
@pytest.mark.parametrize("spoil", [
  lambda folder: shutil.rmtree(folder / "state"),
  *further(
    lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    lambda folder: shutil.rmtree(folder / "run"),
    lambda folder: [shutil.rmtree(folder / "state"), (folder / "state").write_text("")]),
], ids=["empty", "without-state", "without-run", "file-for-folder"])
def test_folder_that_is_no_whole_checkpoint_falls_back_and_says_so(workdir, capfd, spoil):
  spoil(workdir / "checkpoints" / "3")
  checkpoints, (step, state) = restore(workdir)
  checkpoints.close()
  assert step == 2
  tiny.assert_same_bits(state, make_state(2))
  assert capfd.readouterr().err.count("going back to step 2") == 1
  gc.collect()


def test_files_that_are_no_checkpoints_are_left_alone(workdir):
  for name in ("notes.txt", "9", "best"):
    (workdir / "checkpoints" / name).write_text("mine")
  (workdir / "checkpoints" / "backup").mkdir()
  checkpoints, (step, _) = restore(workdir)
  checkpoints.save(4, make_state(4), {})
  checkpoints.wait()
  checkpoints.close()
  assert step == 3
  assert {"notes.txt", "9", "best", "backup", "4"} <= {path.name for path in (workdir / "checkpoints").iterdir()}


def test_checkpoint_of_another_model_is_refused_and_nothing_changed(workdir, tmp_path_factory):
  foreign = Checkpoints(tmp_path_factory.mktemp("foreign"))
  foreign.save(9, other_state(9), {})
  foreign.wait()
  shutil.copytree(foreign._workdir / "checkpoints" / "9", workdir / "checkpoints" / "9")
  foreign.close()
  with pytest.raises(ValueError, match=r"checkpoint of step 9 .* does not fit this config: params/weight has .* --i"):
    restore(workdir)
  with pytest.raises(ValueError, match=r"params/weight has shape .*; use the config it was made with\.$"):
    load_variables(workdir, {"params": abstract().params})  # what --init_from does need not advise --init_from
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2", "3", "9"]


def test_a_state_of_fewer_arrays_than_the_checkpoints_does_not_fit(workdir):
  checkpoints = Checkpoints(workdir, keep_last=5)
  fewer = abstract().replace(params={"weight": abstract().params["weight"]})
  with pytest.raises(ValueError, match="does not fit this config: it also has the array params/count"):
    checkpoints.restore_latest(fewer)
  checkpoints.close()


def test_file_in_the_place_of_the_folder_is_one_sentence(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(ValueError, match="is a file, so no checkpoints can lie there"):
    Checkpoints(tmp_path)
