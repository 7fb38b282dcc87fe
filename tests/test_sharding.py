"""Where arrays go on a mesh, for parameters, memory and batches."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lattice_jax import sharding
from lattice_jax.config import MeshConfig
from lattice_jax.sharding import (
  check_batch,
  make_mesh,
  param_shardings,
  placed_devices,
  put_batch,
  shape_letters,
  state_shardings,
  tree_bytes,
)
from lattice_jax.training.state import create_state
from tests.training import tiny


@flax.struct.dataclass
class SlotState:
  mean_BHMV: jax.Array
  count_BHM: jax.Array
  document_B: jax.Array


def spec(shape, names, config=None):
  config = config or MeshConfig(data=4, model=2)
  box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
  return param_shardings({"leaf": box}, make_mesh(config), config)["leaf"].spec


@pytest.mark.parametrize(("shape", "names", "expected"), [
  ((259, 16), ("vocab", "embed"), P(None, "data")),
  ((260, 16), ("vocab", "embed"), P("model", "data")),
  ((2, 16, 32), ("layers", "embed", "mlp"), P(None, "data", "model")),
  ((16, 16), ("embed", "embed"), P("data", None)),
  ((6, 7), ("embed", "mlp"), P(None, None)),
  ((2, 4, 8), ("heads", "value", "key"), P("model", None, None)),
])
def test_axes_that_do_not_fit_or_are_used_are_dropped(shape, names, expected):
  assert spec(shape, names) == expected


def test_without_fsdp_embed_is_not_sharded():
  assert spec((260, 16), ("vocab", "embed"), MeshConfig(data=4, model=2, fsdp=False)) == P("model", None)


def test_rule_to_an_unknown_axis_names_the_axes():
  with pytest.raises(ValueError, match="the mesh has the axes data, seq, model"):
    spec((4,), ("heads",), MeshConfig(data=4, model=2, rules=(("heads", "modle"),)))


@pytest.mark.parametrize("layers", [(), (3,)], ids=["one-layer", "stacked"])
def test_memory_is_sharded_by_the_letters_of_its_names(layers):
  mesh = make_mesh(MeshConfig(data=4, model=2))
  state = SlotState(jnp.zeros((*layers, 8, 2, 5, 6)), jnp.zeros((*layers, 8, 3, 5)), jnp.zeros((*layers, 8)))
  shardings = state_shardings({"block_0": state}, mesh)["block_0"]
  front = (None,) * len(layers)
  assert shardings.mean_BHMV.spec == P(*front, "data", "model", None, None)
  assert shardings.count_BHM.spec == P(*front, "data", None, None)
  assert shardings.document_B.spec == P(*front, "data")


def test_state_field_without_its_letters_is_refused():
  with pytest.raises(ValueError, match="must end in one letter for each axis"):
    jax.tree_util.tree_map_with_path(shape_letters, {"mean": jnp.zeros((2, 3))})


@pytest.mark.parametrize(("data", "model"), [(3, 1), (-1, 3), (0, 1), (4, 4)])
def test_mesh_that_does_not_fit_the_devices_is_refused(data, model):
  with pytest.raises(ValueError, match="devices"):
    make_mesh(MeshConfig(data=data, model=model))


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a mesh is made by, of a device that is not there."""

  id: int
  process_index: int
  slice_index: int
  coords: tuple[int, int, int]
  device_kind: str = "TPU v6 lite"
  platform: str = "tpu"
  core_on_chip: int = 0


def slice_of_chips(kind, *sides, number=0):
  """A slice, four chips a process."""
  places = list(np.ndindex(*reversed(sides)))
  return [Chip(number * len(places) + place, (number * len(places) + place) // 4, number, (*reversed(zyx),), kind)
          for place, zyx in enumerate(places)]


@pytest.mark.parametrize(("kind", "sides", "model"), [
  ("TPU v6 lite", (16, 16, 1), 4), ("TPU v5p", (4, 4, 4), 2), ("TPU v5", (4, 4, 4), 8)])
def test_an_axis_may_be_part_of_a_side_of_the_torus_and_its_chips_are_neighbours(kind, sides, model):
  placed = placed_devices((math.prod(sides) // model, 1, model), slice_of_chips(kind, *sides))
  assert len({chip.id for chip in placed.flat}) == math.prod(sides)
  for row in placed.reshape(-1, model):
    spans = [max(chip.coords[axis] for chip in row) - min(chip.coords[axis] for chip in row) + 1 for axis in range(3)]
    assert math.prod(spans) == model  # a box without holes


@pytest.mark.parametrize(("sizes", "between"), [
  ((16, 1, 2), (4, 1, 1)), ((2, 4, 4), (2, 2, 1)), ((1, 1, 32), (1, 1, 4))])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_the_outer_axes_go_between_slices(platform, sizes, between):
  kind = "TPU v5p" if platform == "tpu" else "NVIDIA H100 80GB HBM3"
  chips = [dataclasses.replace(chip, platform=platform)
           for number in (2, 0, 3, 1) for chip in slice_of_chips(kind, 2, 2, 2, number=number)]
  placed = placed_devices(sizes, chips)
  assert placed.shape == sizes and len(set(placed.flat)) == 32
  parts = [placed]
  for axis, number in enumerate(between):
    parts = [piece for part in parts for piece in np.split(part, number, axis)]
  assert [{chip.slice_index for chip in part.flat} for part in parts] == [{0}, {1}, {2}, {3}]


def test_machines_with_different_numbers_of_gpus_are_taken_in_their_order():
  chips = [Chip(number, number // 2, number // 4, (0, 0, 0), "NVIDIA L4", "gpu") for number in range(6)]
  assert [chip.id for chip in placed_devices((3, 1, 2), chips[::-1]).flat] == list(range(6))


@pytest.mark.parametrize(("batch", "accumulate", "suggestion"), [(12, 1, 8), (8, 2, 16), (40, 2, 32), (4, 1, 8)])
def test_batch_that_is_not_divisible_names_one_that_is(batch, accumulate, suggestion):
  config = tiny.make_config(data__batch=batch, train__accumulate=accumulate)
  with pytest.raises(ValueError, match=f"such as data.batch={suggestion}") as refused:
    check_batch(config, make_mesh(config.mesh))
  assert "\n" not in str(refused.value)
  fitting = tiny.make_config(data__batch=suggestion, train__accumulate=accumulate)
  check_batch(fitting, make_mesh(fitting.mesh))


def test_batch_must_be_divisible_among_processes_too(monkeypatch):
  config = tiny.make_config(data__batch=4)
  mesh = make_mesh(config.mesh, jax.devices()[:2])
  check_batch(config, mesh)
  monkeypatch.setattr(sharding, "reader_of", lambda mesh: (0, 3))
  with pytest.raises(ValueError, match=r"such as data\.batch=6"):
    check_batch(config, mesh)


def test_state_is_born_sharded_and_the_same_on_any_mesh(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config = tiny.make_config()
  one = create_state(config, make_mesh(config.mesh, jax.devices()[:1]))
  eight = create_state(config, make_mesh(config.mesh))
  tiny.assert_same_bits(eight, one)
  assert eight.params["embedding"].sharding.spec == P("model", "data")
  assert eight.opt_state.mu["embedding"].sharding.spec == P("model", "data")
  assert eight.memory.mean_BD.sharding.spec == P("data", None)
  assert eight.step.sharding.is_fully_replicated


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_of_a_batch_go_over_the_data_axis(stacked):
  mesh = make_mesh(MeshConfig(data=4, model=2))
  lead = (3,) if stacked else ()
  batch = {"tokens": np.arange(np.prod([*lead, 8, 5])).reshape(*lead, 8, 5), "sequence": np.zeros(lead, np.int32)}
  placed = put_batch(batch, mesh, rows=8, stacked=stacked)
  assert placed["tokens"].sharding.shard_shape(placed["tokens"].shape) == (*lead, 2, 5)
  assert placed["sequence"].sharding.is_fully_replicated
  tiny.assert_same_bits(placed, batch)


def test_bytes_are_counted_once():
  assert tree_bytes({"a": jnp.zeros((3, 4), jnp.bfloat16), "b": jnp.zeros((), jnp.int32)}) == 28
