"""A memory that is easy to get right, the mean of the document so far, and ways to get it wrong.

It stands in for a layer with a bug, to show that each law can fail.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lattice_jax.config import ModelConfig
from lattice_jax.memories.memory import Memory
from lattice_jax.ops.sequence import num_shards, split_tokens
from lattice_jax.types import LayerOutput
from tests.contract.memories import PIECE, Row


@flax.struct.dataclass
class MeanState:
  mean_BD: jax.Array
  count_B: jax.Array
  document_B: jax.Array


class MeanMemory(nn.Module):
  """y = (mean of the document so far) · W · x. `fault` names what is wrong with it; "" is right."""

  config: ModelConfig
  fault: str = ""

  def init_state(self, batch: int, max_len: int = 0) -> MeanState:
    dtype = self.config.dtype if self.fault == "16-bit sums" else "float32"
    return MeanState(
      jnp.zeros((batch, self.config.dim), dtype), jnp.zeros((batch,), jnp.float32), jnp.full((batch,), -1, jnp.int32))

  @nn.compact
  def __call__(self, x_BTD: jax.Array, state: MeanState, segment: Any, *, train: bool) -> LayerOutput:
    init = nn.with_logical_partitioning(nn.initializers.normal(0.3), ("layers", "value", "embed"))
    w_DD = self.param("w", init, (2, x_BTD.shape[-1], x_BTD.shape[-1]))
    valid_BT = jnp.ones_like(segment.valid_BT) if self.fault == "counts padding" else segment.valid_BT
    ids_BT = segment.ids_BT
    if self.fault == "ignores resets":
      ids_BT = jnp.ones_like(ids_BT)
    if self.fault == "confuses ids":
      ids_BT = jnp.maximum(ids_BT, 2)
    x_BTD = jnp.where(valid_BT[..., None], x_BTD, 0)
    h_BTD = (x_BTD @ w_DD[0].astype(x_BTD.dtype)).astype(jnp.float32)
    if self.fault == "forgets in some calls" and x_BTD.shape[1] == PIECE:
      state = self.init_state(x_BTD.shape[0])
    read = _by_quadratic_mean if self.config.impl == "reference" else _by_scan
    inputs = jax.lax.stop_gradient(h_BTD) if self.fault == "cuts a gradient" and read is _by_scan else h_BTD
    if self.fault == "cuts the state's gradient" and read is _by_scan:
      state = state.replace(mean_BD=jax.lax.stop_gradient(state.mean_BD))
    before_BD = state.mean_BD
    if self.fault == "forgets between shards" and num_shards(x_BTD.shape[1]) > 1:
      tokens = inputs, ids_BT, valid_BT
      mean_BTD, state, _ = split_tokens(lambda shard, _, x, state: (*read(x[0], state, *x[1:]), ()), (), tokens, state)
    else:
      mean_BTD, state = read(inputs, state, ids_BT, valid_BT)
    if self.fault == "leaks a millionth":
      mean_BTD += 1e-6 * before_BD[:, None]
    y_BTD = self._product(self._break(mean_BTD, h_BTD), w_DD[1]) * x_BTD
    if self.fault == "changes its dtype":
      state = state.replace(count_B=state.count_B.astype(jnp.bfloat16))
    squares = jnp.sum(h_BTD**2 * segment.valid_BT[..., None])
    return LayerOutput(
      y_BTD.astype(x_BTD.dtype), state, {"size": (squares, segment.valid_BT.sum().astype(jnp.float32))}, {},
      {"total_D": jnp.sum(h_BTD * segment.valid_BT[..., None], (0, 1))})

  def _product(self, mean_BTD: jax.Array, w_DD: jax.Array) -> jax.Array:
    if self.fault != "leaves out a part of the sum" or "model" not in jax.sharding.get_abstract_mesh().axis_names:
      return mean_BTD @ w_DD
    parts = PartitionSpec(None, None, "model"), PartitionSpec("model")
    return jax.shard_map(
      jnp.matmul, in_specs=parts, out_specs=PartitionSpec(), axis_names={"model"}, check_vma=False)(mean_BTD, w_DD)

  def _break(self, mean_BTD: jax.Array, h_BTD: jax.Array) -> jax.Array:
    length = mean_BTD.shape[1]
    if self.fault == "looks ahead":
      return mean_BTD + 0.1 * jnp.roll(h_BTD, -1, axis=1)
    if self.fault == "sees one token":
      return h_BTD
    if self.fault == "mixes rows":
      return mean_BTD + 1e-3 * mean_BTD.mean(0)
    if self.fault == "steps differ":
      return mean_BTD * (1.001 if length == 1 else 1.0)
    if self.fault == "counts from the row's start":
      return mean_BTD * (1 + jnp.arange(length)[:, None])
    if self.fault == "sums":
      return jnp.cumsum(mean_BTD, 1)
    if self.fault == "overflows at a gate's end":
      return mean_BTD * jnp.exp(jnp.abs(h_BTD))
    return mean_BTD


def toy_row(fault: str = "") -> Row:
  """The toy as a row of the table."""
  memory = Memory(
    make=lambda model: MeanMemory(model, fault), multiply_adds=lambda model, length: 0.0, cases=lambda sizes: iter(()))
  return Row(
    f"toy that {fault or 'is right'}", memory, ModelConfig(dim=6, impl="xla"), accumulators=("mean_BD",),
    constant_input=lambda model, state: None)


def _by_scan(h_BTD, state, ids_BT, valid_BT):
  def step(state, token):
    h_BD, id_B, valid_B = token
    goes_on_B = id_B == state.document_B
    count_B = jax.lax.stop_gradient(state.count_B) * goes_on_B + 1
    mean_BD = state.mean_BD * goes_on_B[:, None]
    mean_BD += ((h_BD - mean_BD) / count_B[:, None]).astype(mean_BD.dtype)
    after = MeanState(mean_BD, count_B, id_B)
    after = jax.tree.map(
      lambda new, old: jnp.where(valid_B.reshape(-1, *(1,) * (new.ndim - 1)), new, old), after, state)
    return after, after.mean_BD

  xs = tuple(jnp.moveaxis(x, 1, 0) for x in (h_BTD, ids_BT, valid_BT))
  state = state.replace(count_B=jax.lax.stop_gradient(state.count_B))
  state, mean_TBD = jax.lax.scan(step, state, xs)
  return jnp.moveaxis(mean_TBD, 0, 1), state


def _by_quadratic_mean(h_BTD, state, ids_BT, valid_BT):
  before_BT = jnp.concatenate([state.document_B[:, None], ids_BT[:, :-1]], 1)
  run_BT = jnp.cumsum(ids_BT != before_BT, 1)
  length = ids_BT.shape[1]
  weight_BTT = (run_BT[:, :, None] == run_BT[:, None]) & jnp.tri(length, dtype=bool) & valid_BT[:, None]
  old_BT = jnp.where(run_BT == 0, jax.lax.stop_gradient(state.count_B)[:, None], 0.0)
  count_BT = old_BT + weight_BTT.sum(-1)
  total_BTD = jnp.einsum("BTS,BSD->BTD", weight_BTT, h_BTD) + old_BT[..., None] * state.mean_BD[:, None]
  mean_BTD = total_BTD / jnp.maximum(count_BT, 1)[..., None]
  last_B, some_B = jnp.maximum(valid_BT.sum(1) - 1, 0), valid_BT.any(1)

  def final(new_BT, old_B):
    picked_B = jax.vmap(lambda new_T, last: new_T[last])(new_BT, last_B)
    return jnp.where(some_B.reshape(-1, *(1,) * (picked_B.ndim - 1)), picked_B, old_B)

  count_B = final(count_BT, jax.lax.stop_gradient(state.count_B))
  return mean_BTD, MeanState(final(mean_BTD, state.mean_BD), count_B, final(ids_BT, state.document_B))

