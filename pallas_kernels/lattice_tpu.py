"""Exact Lattice recurrence on a TPU, token by token, heads on lanes (lattice_layout.py), forward and backward.

Grid: groups (parallel) × chunks of C tokens (in order, backwards for the adjoint). Letters: V values of a part, M
slots, L = 128 lanes. Blocks of a program: codes q, k [C, M, L]; values v, out [C, V, L]; rate and where documents
begin [C, L], and the share that returning slots get of their start; slots [V, M, L] before the first token, of new
documents, saved at the chunk's start, after the last token. Scratch, all fp32: the running slots [V, M, L], their
squared lengths [M, L] and a token's direction [V, L]. The adjoint also keeps directions of a chunk [C, V, L] and the
slots before each of its tokens [C, V, M, L], which it makes again from the saved ones, and their cotangent.

VMEM: with s = 4·V·M·L bytes (at most 2 MiB, `lattice_layout.STATE_BYTES`) 6·s forward and (C + 7)·s backward, and
tiles, of which codes [C, M, L] take 4 and 10; C is as long as 63 MiB allow, at most 64.
All sums are fp32, on the vector unit; nothing is rounded to bf16 on the way.

Lengths: the squared length of a slot is summed while it is written, and divided by when it is read at the next token,
so that slots have their true length of one at every token without a pass of their own; the length of a·ŝ + b·h in
between has a closed form, (1 + b² (‖h‖² − (ŝ·h)²))^½. Chunks end with slots of length one, which are what is saved.

Returning slots, a·ŝ + b·h + rest·start before the division: their length has no closed form without two more inner
products, and where the start cancels the slot that form would be a small difference of large numbers. They are read by
a pass of their own, once their squared length is summed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lattice_adjoint import returning_adjoint, token_adjoint
from pallas_kernels.lattice_layout import SlotLayout, Tokens
from pallas_kernels.lattice_strips import (
  ADJOINT_STRIP,
  code,
  gate,
  loop,
  over_parts,
  returning_gate,
  strips,
  sum_strip,
)
from pallas_kernels.tiles import LANES

TINY = 1e-12
_STRIP = 64  # slots

Packed = tuple[jax.Array, ...]


def forward(
  layout: SlotLayout, objective: str, q: jax.Array, k: jax.Array, v: jax.Array, gates: Packed, is_start: jax.Array,
  start: jax.Array, slots: jax.Array, *, keeps_boundary: bool, interpret: object = False,
) -> Packed:
  """Packed out and last slots, and with `keeps_boundary` the slots before each chunk [groups, N, V, M, L].

  gates: the rate of retracted slots; the step of returning ones, and the share that they get of their start.
  """
  tokens = _tokens(layout, q, k, v, gates, is_start)
  groups, chunks = layout.groups, layout.chunks
  state = layout.values, layout.slots, LANES
  num = 2 + keeps_boundary
  out_shape = [
    jax.ShapeDtypeStruct(v.shape, jnp.float32), jax.ShapeDtypeStruct(slots.shape, jnp.float32),
    jax.ShapeDtypeStruct((groups, chunks, *state), jnp.float32)]
  out_specs = [_block(layout, layout.values), _resident(state), _boundary(state, lambda n: n)]
  return pl.pallas_call(
    functools.partial(_forward_kernel, layout, objective),
    grid=(groups, chunks),
    in_specs=[_token_specs(layout, len(gates), lambda n: n), _resident(state), _resident(state)],
    out_specs=out_specs[:num],
    out_shape=out_shape[:num],
    scratch_shapes=[
      pltpu.VMEM(state, jnp.float32), pltpu.VMEM(state[1:], jnp.float32),
      pltpu.VMEM((layout.values, LANES), jnp.float32)],
    compiler_params=_compiler_params(layout.forward_bytes()),
    cost_estimate=_cost(layout, 9 if len(gates) == 1 else 11),
    interpret=interpret,
    name="lattice_forward",
  )(tokens, start, slots)


def backward(
  layout: SlotLayout, objective: str, q: jax.Array, k: jax.Array, v: jax.Array, gates: Packed, is_start: jax.Array,
  start: jax.Array, boundary: jax.Array, d_out: jax.Array, d_last: jax.Array, *, interpret: object = False,
) -> tuple[jax.Array | Packed, ...]:
  """Cotangents of q, k, v, gates, start and slots, packed, fp32."""
  tokens, returns = _tokens(layout, q, k, v, gates, is_start), len(gates) == 2
  groups, chunks = layout.groups, layout.chunks
  state = layout.values, layout.slots, LANES

  def back(n):
    return chunks - 1 - n

  def like(x):
    return jax.ShapeDtypeStruct(x.shape, jnp.float32)

  return pl.pallas_call(
    functools.partial(_backward_kernel, layout, objective),
    grid=(groups, chunks),
    in_specs=[
      _token_specs(layout, len(gates), back), _resident(state), _boundary(state, back),
      _block(layout, layout.values, back), _resident(state)],
    out_specs=[
      _block(layout, layout.slots, back), _block(layout, layout.slots, back), _block(layout, layout.values, back),
      (_gates(layout, back),) * len(gates), _resident(state), _resident(state)],
    out_shape=[like(q), like(k), like(v), tuple(map(like, gates)), like(start), like(start)],
    scratch_shapes=[
      pltpu.VMEM(state, jnp.float32), pltpu.VMEM(state[1:], jnp.float32),
      pltpu.VMEM((layout.chunk, layout.values, LANES), jnp.float32), pltpu.VMEM((layout.chunk, *state), jnp.float32),
      *[pltpu.VMEM((layout.chunk, *state[1:]), jnp.float32)] * (1 + returns),
      pltpu.VMEM((layout.chunk, LANES), jnp.float32), pltpu.VMEM((3, *state[1:]), jnp.float32)],
    compiler_params=_compiler_params(layout.backward_bytes(returns=returns)),
    cost_estimate=_cost(layout, 50 if returns else 30),
    interpret=interpret,
    name="lattice_backward",
  )(tokens, start, boundary, d_out, d_last)


def _tokens(layout, q, k, v, gates, is_start):
  """A document begins seldom: a number a token says whether one does in any lane."""
  any_start = (is_start.max(-1) > 0).astype(jnp.int32).reshape(layout.groups, layout.chunks, 1, layout.chunk)
  return Tokens(q, k, v, gates, is_start, any_start)


def _token_specs(layout, num_gates, order):
  return Tokens(
    _block(layout, layout.slots, order), _block(layout, layout.slots, order), _block(layout, layout.values, order),
    (_gates(layout, order),) * num_gates, _gates(layout, order),
    pl.BlockSpec((1, 1, 1, layout.chunk), lambda g, n: (g, order(n), 0, 0), memory_space=pltpu.SMEM))


def _block(layout, width, order=lambda n: n):
  return pl.BlockSpec((1, layout.chunk, width, LANES), lambda g, n: (g, order(n), 0, 0))


def _gates(layout, order):
  return pl.BlockSpec((1, layout.chunk, LANES), lambda g, n: (g, order(n), 0))


def _resident(state):
  """Of a group, not of a chunk: a second buffer would only hide one copy of the next group."""
  return pl.BlockSpec((1, *state), lambda g, n: (g, 0, 0, 0), pipeline_mode=pl.Buffered(1))


def _boundary(state, order):
  return pl.BlockSpec((1, 1, *state), lambda g, n: (g, order(n), 0, 0, 0))


def _compiler_params(vmem_bytes):
  return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes)


def _cost(layout, flops):
  """So many floating-point operations a token and element of the slots."""
  tokens = layout.groups * layout.chunks * layout.chunk
  return pl.CostEstimate(
    flops=flops * tokens * layout.state_bytes // 4, transcendentals=2 * tokens * layout.slots * LANES,
    bytes_accessed=4 * tokens * LANES * 2 * (layout.slots + layout.values))


def _forward_kernel(layout, objective, tokens, start_ref, slots_ref, out_ref, last_ref, *rest):
  *boundary_ref, s_ref, squared_ref, h_ref = rest
  move = _return if tokens.returns else _turn

  @pl.when(pl.program_id(1) == 0)
  def _():
    s_ref[...] = slots_ref[0]

  if boundary_ref:
    boundary_ref[0][0, 0] = s_ref[...]
  squared_ref[...] = jnp.ones_like(squared_ref)

  def one_token(t, _):
    _restart(tokens, start_ref, s_ref, squared_ref, t)
    energy_1L = _direct(layout, objective, tokens, s_ref, squared_ref, h_ref, t)
    for rows in strips(layout, _STRIP):
      move(layout, objective, tokens, t, rows, energy_1L, start_ref, (s_ref, squared_ref, h_ref), out_ref=out_ref)
    return 0

  jax.lax.fori_loop(0, layout.chunk, one_token, 0)
  _normalise(layout, s_ref, squared_ref)

  @pl.when(pl.program_id(1) == layout.chunks - 1)
  def _():
    last_ref[0] = s_ref[...]


def _backward_kernel(layout, objective, tokens, start_ref, boundary_ref, d_out_ref, d_last_ref, d_q_ref, d_k_ref,
                     d_v_ref, d_gate_refs, d_start_ref, d_s_ref, s_ref, squared_ref, h_ref, before_ref, along_ref,
                     *rest):
  *shrink_ref, energy_ref, gate_ref = rest
  move, adjoint = (_return, returning_adjoint) if tokens.returns else (_turn, token_adjoint)

  @pl.when(pl.program_id(1) == 0)
  def _():
    d_s_ref[...] = d_last_ref[...]
    d_start_ref[...] = jnp.zeros_like(d_start_ref)

  s_ref[...] = boundary_ref[0, 0]
  squared_ref[...] = jnp.ones_like(squared_ref)

  def replay(t, _):
    _restart(tokens, start_ref, s_ref, squared_ref, t)
    energy_1L = _direct(layout, objective, tokens, s_ref, squared_ref, h_ref.at[t], t)
    energy_ref[pl.ds(t, 1)] = energy_1L
    for rows in strips(layout, ADJOINT_STRIP):
      move(
        layout, objective, tokens, t, rows, energy_1L, start_ref, (s_ref, squared_ref, h_ref.at[t]),
        kept=(before_ref.at[t], along_ref.at[t]))
      if shrink_ref:
        shrink_ref[0][t, rows] = _scale(squared_ref, rows)
    return 0

  def go_back(i, _):
    t = layout.chunk - 1 - i
    adjoint(
      layout, objective, t, tokens, start_ref, before_ref.at[t], h_ref.at[t], (along_ref, energy_ref, *shrink_ref),
      d_out_ref, (d_s_ref, d_start_ref), (d_q_ref, d_k_ref, d_v_ref, d_gate_refs), gate_ref)

    @pl.when(tokens.any_start[0, 0, 0, t] != 0)
    def _():
      is_start_1L = tokens.is_start[0, pl.ds(t, 1)] > 0

      def split(j, _):
        d_start_ref[0, j] += jnp.where(is_start_1L, d_s_ref[0, j], 0.0)
        d_s_ref[0, j] = jnp.where(is_start_1L, 0.0, d_s_ref[0, j])
        return 0

      loop(layout.values, split, 0)

    return 0

  jax.lax.fori_loop(0, layout.chunk, replay, 0)
  jax.lax.fori_loop(0, layout.chunk, go_back, 0)


def _turn(layout, objective, tokens, t, rows, energy_1L, start_ref, held, out_ref=None, kept=None):
  """Moves a strip of retracted slots by one token, and reads it or keeps what it was and how it lay to h."""
  s_ref, squared_ref, h_ref = held
  rate_1L = tokens.gates[0][0, pl.ds(t, 1)]
  along_ML, scale_ML = _measure(layout, s_ref, squared_ref, h_ref, rows)
  if kept:
    kept[1][rows] = along_ML
  keep_ML, write_ML = gate(objective, code(tokens.k, t, rows), rate_1L, along_ML, energy_1L)[:2]
  keep_ML = keep_ML * scale_ML
  q_ML = None if out_ref is None else code(tokens.q, t, rows)

  def write(j, squared_ML):
    if kept:
      kept[0][j, rows] = scale_ML * s_ref[j, rows]
    s_ML = keep_ML * s_ref[j, rows] + write_ML * h_ref[pl.ds(j, 1)]
    s_ref[j, rows] = s_ML
    if out_ref is not None:
      sum_strip(out_ref.at[0, t], j, rows, q_ML * s_ML)
    return squared_ML + s_ML * s_ML

  squared_ref[rows] = over_parts(layout, loop(layout.values, write, jnp.zeros_like(keep_ML)))


def _return(layout, objective, tokens, t, rows, energy_1L, start_ref, held, out_ref=None, kept=None):
  """As `_turn`, of returning slots."""
  s_ref, squared_ref, h_ref = held
  step_1L, rest_1L = (ref[0, pl.ds(t, 1)] for ref in tokens.gates)
  along_ML, scale_ML = _measure(layout, s_ref, squared_ref, h_ref, rows)
  if kept:
    kept[1][rows] = along_ML
  a_ML, b_ML = returning_gate(objective, code(tokens.k, t, rows), step_1L, rest_1L, along_ML)[:2]
  keep_ML = a_ML * scale_ML

  def write(j, squared_ML):
    if kept:
      kept[0][j, rows] = scale_ML * s_ref[j, rows]
    s_ML = keep_ML * s_ref[j, rows] + b_ML * h_ref[pl.ds(j, 1)] + rest_1L * start_ref[0, j, rows]
    s_ref[j, rows] = s_ML
    return squared_ML + s_ML * s_ML

  squared_ref[rows] = over_parts(layout, loop(layout.values, write, jnp.zeros_like(keep_ML)))
  if out_ref is not None:
    q_ML = code(tokens.q, t, rows) * _scale(squared_ref, rows)

    def read(j, _):
      sum_strip(out_ref.at[0, t], j, rows, q_ML * s_ref[j, rows])
      return 0

    loop(layout.values, read, 0)


def _restart(tokens, start_ref, s_ref, squared_ref, t):
  """Lanes whose document begins here take its slots."""

  @pl.when(tokens.any_start[0, 0, 0, t] != 0)
  def _():
    is_start_1L = tokens.is_start[0, pl.ds(t, 1)] > 0

    def select(j, _):
      s_ref[j] = jnp.where(is_start_1L, start_ref[0, j], s_ref[j])
      return 0

    loop(s_ref.shape[0], select, 0)
    squared_ref[...] = jnp.where(is_start_1L, 1.0, squared_ref[...])


def _direct(layout, objective, tokens, s_ref, squared_ref, h_ref, t):
  """Writes a token's direction to h_ref; its energy."""
  h_ref[...] = tokens.v[0, t].astype(jnp.float32)
  if objective == "decoding":
    for rows in strips(layout, _STRIP):
      code_ML = code(tokens.k, t, rows) * _scale(squared_ref, rows)

      def subtract(j, _, rows=rows, code_ML=code_ML):
        h_ref[pl.ds(j, 1)] -= jnp.sum(code_ML * s_ref[j, rows], 0, keepdims=True)
        return 0

      loop(layout.values, subtract, 0)
  return over_parts(layout, jnp.sum(h_ref[...] * h_ref[...], 0, keepdims=True))


def _measure(layout, s_ref, squared_ref, h_ref, rows):
  """Inner products of the direction with slots of length one, and what makes the length of the slots held one."""

  def measure(j, along_ML):
    return along_ML + s_ref[j, rows] * h_ref[pl.ds(j, 1)]

  scale_ML = _scale(squared_ref, rows)
  return over_parts(layout, loop(layout.values, measure, jnp.zeros_like(scale_ML))) * scale_ML, scale_ML


def _scale(squared_ref, rows):
  return jax.lax.rsqrt(jnp.maximum(squared_ref[rows], TINY**2))



def _normalise(layout, s_ref, squared_ref):
  for rows in strips(layout, _STRIP):
    scale_ML = _scale(squared_ref, rows)

    def divide(j, _, rows=rows, scale_ML=scale_ML):
      s_ref[j, rows] = s_ref[j, rows] * scale_ML
      return 0

    loop(layout.values, divide, 0)
