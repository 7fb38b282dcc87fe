"""One token of Lattice for decoding: all heads of a layer in one launch, slots updated in place.

Grid: blocks of R rows, where a row is one head of one sequence, in the layout the state has anyway, so that a step
reads and writes each slot once. A block holds slots [R, M, V] and codes and values of its rows; VMEM 6·R·M·V·4 bytes.
Everything is fp32 on the vector unit.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

TINY = 1e-12
_BLOCK_BYTES = 1 << 20


def step(
  objective: str, q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, slots: jax.Array, *,
  interpret: object = False,
) -> tuple[jax.Array, jax.Array]:
  """Out [B, H, V] and the slots after the token; q, k: [B, H, M]; v: [B, H, V]; rate: [B, H]."""
  batch, heads, num_slots, value_dim = slots.shape
  num_rows = batch * heads
  rows = 8
  while rows < num_rows and 2 * rows * num_slots * value_dim * 4 <= _BLOCK_BYTES:
    rows *= 2
  padding = -num_rows % rows

  def by_row(x, *width):
    x = x.astype(jnp.float32).reshape(num_rows, *width)
    return jnp.pad(x, ((0, padding), *((0, 0),) * len(width))) if padding else x

  def block(*width):
    return pl.BlockSpec((rows, *width), lambda r: (r, *(0,) * len(width)))

  inputs = (
    by_row(q, num_slots), by_row(k, num_slots), by_row(v, value_dim), by_row(rate, 1),
    by_row(slots, num_slots, value_dim))
  out, after = pl.pallas_call(
    functools.partial(_step_kernel, objective),
    grid=((num_rows + padding) // rows,),
    in_specs=[block(num_slots), block(num_slots), block(value_dim), block(1), block(num_slots, value_dim)],
    out_specs=[block(value_dim), block(num_slots, value_dim)],
    out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (inputs[2], inputs[4])],
    input_output_aliases={4: 1},
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=32 << 20),
    cost_estimate=pl.CostEstimate(
      flops=9 * slots.size, transcendentals=2 * num_rows * num_slots, bytes_accessed=8 * slots.size),
    interpret=interpret,
    name="lattice_step",
  )(*inputs)
  return out[:num_rows].reshape(v.shape), after[:num_rows].reshape(slots.shape)


def _step_kernel(objective, q_ref, k_ref, v_ref, rate_ref, s_ref, out_ref, after_ref):
  s_RMV, q_RM1, k_RM1 = s_ref[...], q_ref[...][:, :, None], k_ref[...][:, :, None]
  h_R1V, rate_R11 = v_ref[...][:, None, :], rate_ref[...][:, :, None]
  if objective == "decoding":
    h_R1V = h_R1V - jnp.sum(k_RM1 * s_RMV, 1, keepdims=True)
  along_RM1 = jnp.sum(s_RMV * h_R1V, 2, keepdims=True)
  code_RM1 = k_RM1 - along_RM1 if objective == "encoding" else k_RM1
  b_RM1 = code_RM1 * rate_R11
  moved_RMV = (1.0 - b_RM1 * along_RM1) * s_RMV + b_RM1 * h_R1V
  squared_RM1 = jnp.sum(moved_RMV * moved_RMV, 2, keepdims=True)
  after_RMV = moved_RMV * jax.lax.rsqrt(jnp.maximum(squared_RM1, TINY**2))
  after_ref[...] = after_RMV
  out_ref[...] = jnp.sum(q_RM1 * after_RMV, 1)
