"""The laws of a memory layer on several devices, L10, L14 and L15; see `laws`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lattice_jax.config import MeshConfig
from lattice_jax.ops.sequence import AXIS
from lattice_jax.sharding import make_mesh, param_shardings, state_shardings
from tests.contract.compare import assert_pulls_close, pull
from tests.contract.harness import Form, float_leaves, form, init_boxed
from tests.contract.memories import LENGTH, ROWS_PER_BATCH, Row
from tests.contract.scenes import documents, mixed, scene
from tests.contract.tolerances import fail


def devices_agree(row: Row) -> None:
  """L10: rows spread over 8 devices give what one device gives, sums and parameter gradients included."""
  subject = form(row)
  here = mixed(subject)
  mesh = jax.make_mesh((ROWS_PER_BATCH,), ("data",), axis_types=(AxisType.Auto,))
  spread = jax.device_put(here, NamedSharding(mesh, PartitionSpec("data")))
  everywhere = jax.device_put(subject.variables, NamedSharding(mesh, PartitionSpec()))
  eight = Form(f"{row.name} on 8 devices", row.memory, subject.model, everywhere)
  with jax.set_mesh(mesh):
    got = eight.call(spread.x_BTD, spread.state, spread.segment, spread.d_y_BTD, spread.d_state, loss_weight=1.0)
  if got.y_BTD.sharding.is_fully_replicated:
    fail("L10", eight.label, "output", "was not spread over the devices")
  assert_pulls_close("L10", eight.label, jax.device_get(got), pull(subject, here), here.segment)


def split_parameters_agree(row: Row, data: int, model: int) -> None:
  """L15: parameters in parts give what whole ones give: split over `data` (FSDP), over `model`, or over both.

  Heads of the state are split over `model` too.
  """
  subject = form(row)
  here = mixed(subject)
  config = MeshConfig(data=data, model=model)
  mesh = make_mesh(config, jax.devices()[:data * model])
  boxed = jax.eval_shape(lambda rng: init_boxed(subject.layer, subject.model, rng), jax.random.key(0))
  variables = jax.device_put(subject.variables, param_shardings(boxed, mesh, config))
  if all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(variables["params"])):
    fail("L15", row.name, "parameters", "are whole on each device")
  spread = jax.device_put((here.x_BTD, here.segment, here.d_y_BTD), NamedSharding(mesh, PartitionSpec("data")))
  d_state = {path: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data")))
             for path, leaf in here.d_state.items()}
  split = Form(f"{row.name} on {data} × {model} devices", row.memory, subject.model, variables)
  with jax.set_mesh(mesh):
    state = jax.device_put(here.state, state_shardings(here.state, mesh))
    x_BTD, segment, d_y_BTD = spread
    got = split.call(x_BTD, state, segment, d_y_BTD, d_state, loss_weight=1.0)
  assert_pulls_close("L15", split.label, jax.device_get(got), pull(subject, here), here.segment)


def sequence_shards_agree(row: Row, shards: int, variant: str = "", *, has_room: bool = True) -> None:
  """L14: tokens spread over devices give what one device gives, states, sums and gradients included.

  What reaches back further than a shard has tokens is refused.

  has_room: whether a token cache has room; without, a call starts from nothing.
  """
  subject = form(row, variant=variant)
  here = mixed(subject)
  if not has_room:
    layouts = [[(3 * b, 0, 5 + b), (3 * b + 1, 0, 11 - b), (3 * b, 0, 7 - b)] for b in range(ROWS_PER_BATCH)]
    here = scene(subject, here.x_BTD, subject.init_state(max_len=0), documents(layouts, LENGTH))
  # Whether slots that hold no token are cleared, which stops a gradient, may depend on the other rows of a call.
  after = float_leaves(pull(subject, here).state)
  here = dataclasses.replace(
    here, d_state={path: np.where(after[path] != 0, leaf, 0) for path, leaf in here.d_state.items()})
  more = -LENGTH % shards  # tokens without which LENGTH cannot be split; they are invalid
  mesh = jax.make_mesh((2, shards), ("data", AXIS), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2 * shards])

  def put(tree: Any, *axes: str) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

  def longer(field: np.ndarray) -> np.ndarray:
    return np.pad(field, ((0, 0), (0, more), *((0, 0),) * (field.ndim - 2)))

  x_BTD, segment, d_y_BTD = put(jax.tree.map(longer, (here.x_BTD, here.segment, here.d_y_BTD)), "data", AXIS)
  split = Form(f"{row.name}/{variant} on {shards} shards", row.memory, subject.model, put(subject.variables))
  try:
    with jax.set_mesh(mesh):
      got = split.call(x_BTD, put(here.state, "data"), segment, d_y_BTD, put(here.d_state, "data"), loss_weight=1.0)
  except ValueError as error:
    if row.memory.reach(subject.model) * shards <= LENGTH + more or "reaches back" not in str(error):
      raise
    return
  if got.y_BTD.sharding.shard_shape(got.y_BTD.shape)[1] * shards != LENGTH + more:
    fail("L14", split.label, "output", "was not spread over the shards")
  got = jax.device_get(got)
  got = got.replace(y_BTD=got.y_BTD[:, :LENGTH], d_x_BTD=got.d_x_BTD[:, :LENGTH])
  assert_pulls_close("L14", split.label, got, pull(subject, here), here.segment)
