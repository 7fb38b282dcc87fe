"""One token of Lattice for decoding: all heads of a layer in one launch, slots updated in place.

Grid: blocks of R rows, where a row is one head of one sequence, in the layout the state has anyway, so that a step
reads and writes each slot once. A block holds slots [R, M, V] and codes and values of its rows; VMEM 6·R·M·V·4 bytes.
Starts of all heads [H, M, V], of returning slots alone, stay there from block to block. Everything is fp32 on the
vector unit.

Registers: 64 of 8 × 128. A row at a time, and of it a strip of slots, stay in them. Codes lie along lanes and slots
along sublanes: those of the whole block are turned once, a row to a lane.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tiles import LANES

TINY = 1e-12
_BLOCK_BYTES = 1 << 20
_STRIP = 64  # slots


def step(
  objective: str, q: jax.Array, k: jax.Array, v: jax.Array, gates: tuple[jax.Array, ...], start: jax.Array,
  slots: jax.Array, *, interpret: object = False,
) -> tuple[jax.Array, jax.Array]:
  """Out [B, H, V] and the slots after the token; q, k: [B, H, M]; v: [B, H, V]; start: [H, M, V].

  gates: [B, H] each, the rate of retracted slots; the step of returning ones, and the share that they get of `start`.
  """
  batch, heads, num_slots, value_dim = slots.shape
  num_rows = batch * heads
  rows = 8
  while rows < min(num_rows, LANES) and 2 * rows * num_slots * value_dim * 4 <= _BLOCK_BYTES:
    rows *= 2
  padding = -num_rows % rows

  def by_row(x, *width):
    x = x.astype(jnp.float32).reshape(num_rows, *width)
    return jnp.pad(x, ((0, padding), *((0, 0),) * len(width))) if padding else x

  def block(*width):
    return pl.BlockSpec((rows, *width), lambda r: (r, *(0,) * len(width)))

  starts = (start,) if len(gates) == 2 else ()
  inputs = (
    by_row(q, num_slots), by_row(k, num_slots), by_row(v, value_dim), tuple(by_row(gate, 1) for gate in gates), starts,
    by_row(slots, num_slots, value_dim))
  whole = pl.BlockSpec(start.shape, lambda r: (0, 0, 0), pipeline_mode=pl.Buffered(1))
  out, after = pl.pallas_call(
    functools.partial(_step_kernel, objective),
    grid=((num_rows + padding) // rows,),
    in_specs=[block(num_slots), block(num_slots), block(value_dim), (block(1),) * len(gates), (whole,) * len(starts),
              block(num_slots, value_dim)],
    out_specs=[block(value_dim), block(num_slots, value_dim)],
    out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (inputs[2], inputs[-1])],
    scratch_shapes=[pltpu.VMEM((num_slots, LANES), jnp.float32)] * 2,
    input_output_aliases={len(jax.tree.leaves(inputs)) - 1: 1},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",), vmem_limit_bytes=(32 << 20) + 4 * sum(x.size for x in starts)),
    cost_estimate=pl.CostEstimate(
      flops=9 * slots.size, transcendentals=2 * num_rows * num_slots, bytes_accessed=8 * slots.size),
    interpret=interpret,
    name="lattice_step",
  )(*inputs)
  return out[:num_rows].reshape(v.shape), after[:num_rows].reshape(slots.shape)


def _step_kernel(objective, q_ref, k_ref, v_ref, gate_refs, start_refs, s_ref, out_ref, after_ref, read_ref, code_ref):
  num_rows = s_ref.shape[0]
  first = pl.program_id(0) * num_rows if start_refs else None
  for turned_ref, ref in ((read_ref, q_ref), (code_ref, k_ref)):
    turned_ref[...] = jnp.concatenate([ref[...]] * (LANES // num_rows), axis=0).T

  def one_row(row, _):
    start_ref = start_refs[0].at[(first + row) % start_refs[0].shape[0]] if start_refs else None
    _step_row(objective, row, code_ref, v_ref, gate_refs, start_ref, s_ref, after_ref, out_ref, read_ref)
    return 0

  jax.lax.fori_loop(0, num_rows, one_row, 0)


def _step_row(objective, row, code_ref, v_ref, gate_refs, start_ref, s_ref, after_ref, out_ref, read_ref):
  here, num_slots = pl.ds(row, 1), s_ref.shape[1]
  strips = [pl.ds(first, min(_STRIP, num_slots - first)) for first in range(0, num_slots, _STRIP)]
  h_1V = v_ref[here]
  rate_1V, *rest_1V = (jnp.broadcast_to(ref[here], h_1V.shape) for ref in gate_refs)
  if objective == "decoding":
    for slots in strips:
      h_1V = h_1V - jnp.sum(_column(code_ref, row, slots) * s_ref[row, slots], 0, keepdims=True)
  out_1V = jnp.zeros_like(h_1V)
  for slots in strips:
    s_MV, code_M1 = s_ref[row, slots], _column(code_ref, row, slots)
    along_M1 = jnp.sum(s_MV * h_1V, 1, keepdims=True)
    if objective == "encoding":
      code_M1 = code_M1 - along_M1
    b_MV = code_M1 * rate_1V
    moved_MV = (1.0 - b_MV * along_M1) * s_MV + b_MV * h_1V
    for rest in rest_1V:
      moved_MV = moved_MV + rest * (start_ref[slots] - s_MV)
    squared_M1 = jnp.sum(moved_MV * moved_MV, 1, keepdims=True)
    after_MV = moved_MV * jax.lax.rsqrt(jnp.maximum(squared_M1, TINY**2))
    after_ref[row, slots] = after_MV
    out_1V += jnp.sum(_column(read_ref, row, slots) * after_MV, 0, keepdims=True)
  out_ref[here] = out_1V


def _column(ref, row, slots):
  """The row's codes; a sum, for its result is in all lanes, and a slice would have to be spread over them."""
  lane_ML = jax.lax.broadcasted_iota(jnp.int32, (slots.size, LANES), 1)
  return jnp.sum(jnp.where(lane_ML == row, ref[slots], 0.0), 1, keepdims=True)
