"""What devices that share the tokens of a row hand to one another, as compiled programs say it."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lattice_jax.inspect.hlo import collective_bytes
from lattice_jax.ops.sequence import AXIS
from lattice_jax.types import whole_segment
from tests.contract.harness import form, quick_jit
from tests.contract.memories import ROWS

BATCH, SHARDS = 2, 2
BY_NAME = {row.name: row for row in ROWS}


@functools.cache
def compiled_text(name, length, window=0, exchange="gather", shards=SHARDS):
  """Of a layer's outputs and gradients with respect to parameters and inputs."""
  row, variables = BY_NAME[name], form(BY_NAME[name]).variables
  attention = replace(row.model.attention, window=window or row.model.attention.window, exchange=exchange)
  model = replace(row.model, attention=attention)
  layer = row.memory.make(model)
  mesh = jax.make_mesh((shards,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:shards])
  by_token = NamedSharding(mesh, PartitionSpec(None, AXIS))

  def loss(params, x_BTD, segment):
    state = layer.init_state(BATCH)
    return jnp.square(layer.apply({**variables, "params": params}, x_BTD, state, segment, train=False).y_BTD).sum()

  def split(array):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=by_token)

  x_BTD = jax.ShapeDtypeStruct((BATCH, length, model.dim), jnp.float32, sharding=by_token)
  segment = jax.tree.map(split, jax.eval_shape(lambda: whole_segment(BATCH, length)))
  with jax.set_mesh(mesh):
    lowered = quick_jit(jax.grad(loss, argnums=(0, 1))).lower(variables["params"], x_BTD, segment)
  return lowered.compile().as_text()


def moved_bytes(name, length, window=0):
  found = collective_bytes(compiled_text(name, length, window))
  assert found, "nothing was handed on"
  return sum(found.values())
