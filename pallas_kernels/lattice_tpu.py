"""Exact Lattice recurrence on a TPU, token by token, heads on lanes (lattice_layout.py), forward and backward.

Grid: groups (parallel) × chunks of C tokens (in order, backwards for the adjoint). Letters: V values of a part, M
slots, L = 128 lanes. Blocks of a program: codes q, k [C, M, L]; values v, out [C, V, L]; rate and where documents
begin [C, L]; slots [V, M, L] before the first token, of new documents, saved at the chunk's start, after the last
token. Scratch, all fp32: the running slots [V, M, L], their squared lengths [M, L] and a token's direction [V, L]. The
adjoint also keeps directions of a chunk [C, V, L] and the slots before each of its tokens [C, V, M, L], which it makes
again from the saved ones, and their cotangent.

VMEM: with s = 4·V·M·L bytes (at most 2 MiB, `lattice_layout.STATE_BYTES`) 6·s forward and (C + 7)·s backward, and
tiles. All sums are fp32, on the vector unit; nothing is rounded to bf16 on the way.

Registers: 64 of 8 × 128. A loop over values takes a strip of slots at a time, few enough that what it needs of them in
every turn stays in registers; a sum over all slots is therefore a loop of its own, before those that use it.

Lengths: the squared length of a slot is summed while it is written, and divided by when it is read at the next token,
so that slots have their true length of one at every token without a pass of their own; the length of a·ŝ + b·h in
between has a closed form, (1 + b² (‖h‖² − (ŝ·h)²))^½. Chunks end with slots of length one, which are what is saved.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.lattice_layout import SlotLayout
from pallas_kernels.tiles import LANES

TINY = 1e-12
_UNROLL = 8, 4, 2, 1
# Slots of a strip, forward and adjoint.
_STRIP, _ADJOINT_STRIP = 64, 32
_OTHER_BYTES = 2 << 20  # gates, and what the compiler keeps

Packed = tuple[jax.Array, ...]


def forward(
  layout: SlotLayout, objective: str, q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, is_start: jax.Array,
  start: jax.Array, slots: jax.Array, *, keeps_boundary: bool, interpret: object = False,
) -> Packed:
  """Packed out and last slots, and with `keeps_boundary` the slots before each chunk [groups, N, V, M, L]."""
  groups, chunks = layout.groups, layout.chunks
  state = layout.values, layout.slots, LANES
  num = 2 + keeps_boundary
  out_shape = [
    jax.ShapeDtypeStruct(v.shape, jnp.float32), jax.ShapeDtypeStruct(slots.shape, jnp.float32),
    jax.ShapeDtypeStruct((groups, chunks, *state), jnp.float32)]
  out_specs = [_tokens(layout, layout.values), _resident(state), _boundary(state, lambda n: n)]
  return pl.pallas_call(
    functools.partial(_forward_kernel, layout, objective),
    grid=(groups, chunks),
    in_specs=_input_specs(layout, lambda n: n),
    out_specs=out_specs[:num],
    out_shape=out_shape[:num],
    scratch_shapes=[
      pltpu.VMEM(state, jnp.float32), pltpu.VMEM(state[1:], jnp.float32),
      pltpu.VMEM((layout.values, LANES), jnp.float32)],
    compiler_params=_compiler_params(layout, states=6, code_tiles=4, value_tiles=4),
    cost_estimate=_cost(layout, 9),
    interpret=interpret,
    name="lattice_forward",
  )(*_inputs(layout, q, k, v, rate, is_start), start, slots)


def backward(
  layout: SlotLayout, objective: str, q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, is_start: jax.Array,
  start: jax.Array, boundary: jax.Array, d_out: jax.Array, d_last: jax.Array, *, interpret: object = False,
) -> Packed:
  """Cotangents of q, k, v, rate, start and slots, packed, fp32."""
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
      *_input_specs(layout, back)[:-1], _boundary(state, back), _tokens(layout, layout.values, back), _resident(state)],
    out_specs=[
      _tokens(layout, layout.slots, back), _tokens(layout, layout.slots, back), _tokens(layout, layout.values, back),
      _gates(layout, back), _resident(state), _resident(state)],
    out_shape=[like(q), like(k), like(v), like(rate), like(start), like(start)],
    scratch_shapes=[
      pltpu.VMEM(state, jnp.float32), pltpu.VMEM(state[1:], jnp.float32),
      pltpu.VMEM((layout.chunk, layout.values, LANES), jnp.float32), pltpu.VMEM((layout.chunk, *state), jnp.float32),
      pltpu.VMEM((layout.chunk, *state[1:]), jnp.float32), pltpu.VMEM((layout.chunk, LANES), jnp.float32),
      pltpu.VMEM((3, *state[1:]), jnp.float32)],
    compiler_params=_compiler_params(layout, states=7 + layout.chunk, code_tiles=9, value_tiles=7),
    cost_estimate=_cost(layout, 30),
    interpret=interpret,
    name="lattice_backward",
  )(*_inputs(layout, q, k, v, rate, is_start), start, boundary, d_out, d_last)


def _inputs(layout, q, k, v, rate, is_start):
  """A document begins seldom: a number a token says whether one does in any lane."""
  any_start = (is_start.max(-1) > 0).astype(jnp.int32).reshape(layout.groups, layout.chunks, 1, layout.chunk)
  return q, k, v, rate, is_start, any_start


def _input_specs(layout, order):
  state = (layout.values, layout.slots, LANES)
  return [
    _tokens(layout, layout.slots, order), _tokens(layout, layout.slots, order), _tokens(layout, layout.values, order),
    _gates(layout, order), _gates(layout, order),
    pl.BlockSpec((1, 1, 1, layout.chunk), lambda g, n: (g, order(n), 0, 0), memory_space=pltpu.SMEM),
    _resident(state), _resident(state)]


def _tokens(layout, width, order=lambda n: n):
  return pl.BlockSpec((1, layout.chunk, width, LANES), lambda g, n: (g, order(n), 0, 0))


def _gates(layout, order):
  return pl.BlockSpec((1, layout.chunk, LANES), lambda g, n: (g, order(n), 0))


def _resident(state):
  return pl.BlockSpec((1, *state), lambda g, n: (g, 0, 0, 0))


def _boundary(state, order):
  return pl.BlockSpec((1, 1, *state), lambda g, n: (g, order(n), 0, 0, 0))


def _compiler_params(layout, *, states, code_tiles, value_tiles):
  """Room for so many arrays of each kind; blocks that change with the chunk are there twice."""
  tile_bytes = layout.chunk * (code_tiles * layout.slots + value_tiles * layout.values) * LANES * 4
  return pltpu.CompilerParams(
    dimension_semantics=("parallel", "arbitrary"),
    vmem_limit_bytes=states * layout.state_bytes + tile_bytes + _OTHER_BYTES)


def _cost(layout, flops):
  """So many floating-point operations a token and element of the slots."""
  tokens = layout.groups * layout.chunks * layout.chunk
  return pl.CostEstimate(
    flops=flops * tokens * layout.state_bytes // 4, transcendentals=2 * tokens * layout.slots * LANES,
    bytes_accessed=4 * tokens * LANES * 2 * (layout.slots + layout.values))


def _forward_kernel(layout, objective, q_ref, k_ref, v_ref, rate_ref, is_start_ref, any_start_ref, start_ref, slots_ref,
                    out_ref, last_ref, *rest):
  *boundary_ref, s_ref, squared_ref, h_ref = rest

  @pl.when(pl.program_id(1) == 0)
  def _():
    s_ref[...] = slots_ref[0]

  if boundary_ref:
    boundary_ref[0][0, 0] = s_ref[...]
  squared_ref[...] = jnp.ones_like(squared_ref)

  def one_token(t, _):
    _restart(any_start_ref, is_start_ref, start_ref, s_ref, squared_ref, t)
    rate_1L = rate_ref[0, pl.ds(t, 1)]
    energy_1L = _direct(layout, objective, s_ref, squared_ref, k_ref, v_ref, h_ref, t)
    for rows in _strips(layout, _STRIP):
      along_ML, scale_ML = _measure(layout, s_ref, squared_ref, h_ref, rows)
      keep_ML, write_ML = _gate(objective, _code(k_ref, t, rows), rate_1L, along_ML, energy_1L)[:2]
      keep_ML, q_ML = keep_ML * scale_ML, _code(q_ref, t, rows)

      def write(j, squared_ML, rows=rows, keep_ML=keep_ML, write_ML=write_ML, q_ML=q_ML):
        s_ML = keep_ML * s_ref[j, rows] + write_ML * h_ref[pl.ds(j, 1)]
        s_ref[j, rows] = s_ML
        _sum_strip(out_ref.at[0, t], j, rows, q_ML * s_ML)
        return squared_ML + s_ML * s_ML

      squared_ref[rows] = _over_parts(layout, _loop(layout.values, write, jnp.zeros_like(q_ML)))
    return 0

  jax.lax.fori_loop(0, layout.chunk, one_token, 0)
  _normalise(layout, s_ref, squared_ref)

  @pl.when(pl.program_id(1) == layout.chunks - 1)
  def _():
    last_ref[0] = s_ref[...]


def _backward_kernel(layout, objective, q_ref, k_ref, v_ref, rate_ref, is_start_ref, any_start_ref, start_ref,
                     boundary_ref, d_out_ref, d_last_ref, d_q_ref, d_k_ref, d_v_ref, d_rate_ref, d_start_ref, d_s_ref,
                     s_ref, squared_ref, h_ref, before_ref, along_ref, energy_ref, gate_ref):
  @pl.when(pl.program_id(1) == 0)
  def _():
    d_s_ref[...] = d_last_ref[...]
    d_start_ref[...] = jnp.zeros_like(d_start_ref)

  s_ref[...] = boundary_ref[0, 0]
  squared_ref[...] = jnp.ones_like(squared_ref)

  def replay(t, _):
    _restart(any_start_ref, is_start_ref, start_ref, s_ref, squared_ref, t)
    rate_1L = rate_ref[0, pl.ds(t, 1)]
    energy_1L = _direct(layout, objective, s_ref, squared_ref, k_ref, v_ref, h_ref.at[t], t)
    energy_ref[pl.ds(t, 1)] = energy_1L
    for rows in _strips(layout, _ADJOINT_STRIP):
      along_ML, scale_ML = _measure(layout, s_ref, squared_ref, h_ref.at[t], rows)
      along_ref[t, rows] = along_ML
      keep_ML, write_ML = _gate(objective, _code(k_ref, t, rows), rate_1L, along_ML, energy_1L)[:2]
      keep_ML = keep_ML * scale_ML

      def write(j, squared_ML, rows=rows, scale_ML=scale_ML, keep_ML=keep_ML, write_ML=write_ML):
        before_ref[t, j, rows] = scale_ML * s_ref[j, rows]
        s_ML = keep_ML * s_ref[j, rows] + write_ML * h_ref[t, pl.ds(j, 1)]
        s_ref[j, rows] = s_ML
        return squared_ML + s_ML * s_ML

      squared_ref[rows] = _over_parts(layout, _loop(layout.values, write, jnp.zeros_like(keep_ML)))
    return 0

  def go_back(i, _):
    t = layout.chunk - 1 - i
    _token_adjoint(
      layout, objective, t, (q_ref, k_ref, rate_ref), before_ref.at[t], h_ref.at[t], (along_ref, energy_ref), d_out_ref,
      d_s_ref, (d_q_ref, d_k_ref, d_v_ref, d_rate_ref), gate_ref)

    @pl.when(any_start_ref[0, 0, 0, t] != 0)
    def _():
      is_start_1L = is_start_ref[0, pl.ds(t, 1)] > 0

      def split(j, _):
        d_start_ref[0, j] += jnp.where(is_start_1L, d_s_ref[0, j], 0.0)
        d_s_ref[0, j] = jnp.where(is_start_1L, 0.0, d_s_ref[0, j])
        return 0

      _loop(layout.values, split, 0)

    return 0

  jax.lax.fori_loop(0, layout.chunk, replay, 0)
  jax.lax.fori_loop(0, layout.chunk, go_back, 0)


def _token_adjoint(layout, objective, t, token, before_ref, h_ref, measured, d_out_ref, d_s_ref, d_refs, gate_ref):
  """The equations of memories/lattice/README.md (exact scan) for one token; d_s_ref goes from after it to before it."""
  (q_ref, k_ref, rate_ref), (along_ref, energy_ref), (d_q_ref, d_k_ref, d_v_ref, d_rate_ref) = token, measured, d_refs
  row = pl.ds(t, 1)
  h_d_1L = jnp.sum(h_ref[...] * d_out_ref[0, t], 0, keepdims=True)
  d_rate_ref[0, row] = own_1L = jnp.zeros_like(h_d_1L)
  # Parts of one row come as they are, whatever is the same in all of them in equal shares: they are summed outside.
  share = 1.0 / layout.parts
  for rows in _strips(layout, _ADJOINT_STRIP):
    x_s_ML, x_h_ML, s_d_ML = _dots(layout, _code(q_ref, t, rows), before_ref, h_ref, d_out_ref.at[0, t], d_s_ref, rows)
    along_ML, rate_1L, energy_1L = along_ref[t, rows], rate_ref[0, row], energy_ref[row]
    keep_ML, write_ML, b_ML, shrink_ML, code_ML = _gate(
      objective, _code(k_ref, t, rows), rate_1L, along_ML, energy_1L)
    d_q_ref[0, t, rows] = keep_ML * s_d_ML + write_ML * h_d_1L
    radial_ML = keep_ML * x_s_ML + write_ML * x_h_ML
    d_a_ML = (x_s_ML - radial_ML * (keep_ML + write_ML * along_ML)) * shrink_ML
    d_b_ML = (x_h_ML - radial_ML * (keep_ML * along_ML + write_ML * energy_1L)) * shrink_ML
    d_b_ML = d_b_ML - d_a_ML * along_ML
    d_code_ML = d_b_ML * rate_1L
    d_along_ML = -d_a_ML * b_ML
    if objective == "encoding":
      d_along_ML = d_along_ML - d_code_ML
    d_rate_ref[0, row] += share * jnp.sum(d_b_ML * code_ML, 0, keepdims=True)
    d_k_ref[0, t, rows] = share * d_code_ML
    mixed_ML = d_along_ML - write_ML * radial_ML * keep_ML
    own_1L += jnp.sum(write_ML * write_ML * radial_ML, 0, keepdims=True)
    for i, x_ML in enumerate((keep_ML, keep_ML * keep_ML * radial_ML, mixed_ML)):
      gate_ref[i, rows] = x_ML

    def gather(j, _, rows=rows, write_ML=write_ML, mixed_ML=mixed_ML):
      _sum_strip(d_v_ref.at[0, t], j, rows, write_ML * d_s_ref[0, j, rows] + mixed_ML * before_ref[j, rows])
      return 0

    _loop(layout.values, gather, 0)

  d_v_ref[0, t] -= own_1L * h_ref[...]
  for rows in _strips(layout, _ADJOINT_STRIP):
    keep_ML, back_ML, mixed_ML = (gate_ref[i, rows] for i in range(3))
    k_ML = _code(k_ref, t, rows)

    def spread(j, d_k_ML, rows=rows, k_ML=k_ML, keep_ML=keep_ML, back_ML=back_ML, mixed_ML=mixed_ML):
      s_ML, d_h_1L = before_ref[j, rows], d_v_ref[0, t, pl.ds(j, 1)]
      d_s_ML = keep_ML * d_s_ref[0, j, rows] - back_ML * s_ML + mixed_ML * h_ref[pl.ds(j, 1)]
      if objective == "decoding":
        d_s_ML, d_k_ML = d_s_ML - k_ML * d_h_1L, d_k_ML - s_ML * d_h_1L
      d_s_ref[0, j, rows] = d_s_ML
      return d_k_ML

    d_k_ref[0, t, rows] = _loop(layout.values, spread, d_k_ref[0, t, rows])


def _dots(layout, q_ML, before_ref, h_ref, d_out_ref, d_s_ref, rows):
  """Adds what the read gives to d_s_ref; inner products of that with slots and direction, and of slots with d_out."""

  def dots(j, sums):
    x_s_ML, x_h_ML, s_d_ML = sums
    s_ML, h_1L, d_1L = before_ref[j, rows], h_ref[pl.ds(j, 1)], d_out_ref[pl.ds(j, 1)]
    x_ML = d_s_ref[0, j, rows] + q_ML * d_1L
    d_s_ref[0, j, rows] = x_ML
    return x_s_ML + x_ML * s_ML, x_h_ML + x_ML * h_1L, s_d_ML + s_ML * d_1L

  x_s_ML, x_h_ML, s_d_ML = _loop(layout.values, dots, (jnp.zeros_like(q_ML),) * 3)
  return _over_parts(layout, x_s_ML), _over_parts(layout, x_h_ML), s_d_ML


def _restart(any_start_ref, is_start_ref, start_ref, s_ref, squared_ref, t):
  """Lanes whose document begins here take its slots."""

  @pl.when(any_start_ref[0, 0, 0, t] != 0)
  def _():
    is_start_1L = is_start_ref[0, pl.ds(t, 1)] > 0

    def select(j, _):
      s_ref[j] = jnp.where(is_start_1L, start_ref[0, j], s_ref[j])
      return 0

    _loop(s_ref.shape[0], select, 0)
    squared_ref[...] = jnp.where(is_start_1L, 1.0, squared_ref[...])


def _direct(layout, objective, s_ref, squared_ref, k_ref, v_ref, h_ref, t):
  """Writes a token's direction to h_ref; its energy."""
  h_ref[...] = v_ref[0, t].astype(jnp.float32)
  if objective == "decoding":
    for rows in _strips(layout, _STRIP):
      code_ML = _code(k_ref, t, rows) * _scale(squared_ref, rows)

      def subtract(j, _, rows=rows, code_ML=code_ML):
        h_ref[pl.ds(j, 1)] -= jnp.sum(code_ML * s_ref[j, rows], 0, keepdims=True)
        return 0

      _loop(layout.values, subtract, 0)
  return _over_parts(layout, jnp.sum(h_ref[...] * h_ref[...], 0, keepdims=True))


def _measure(layout, s_ref, squared_ref, h_ref, rows):
  """Inner products of the direction with slots of length one, and what makes the length of the slots held one."""

  def measure(j, along_ML):
    return along_ML + s_ref[j, rows] * h_ref[pl.ds(j, 1)]

  scale_ML = _scale(squared_ref, rows)
  return _over_parts(layout, _loop(layout.values, measure, jnp.zeros_like(scale_ML))) * scale_ML, scale_ML


def _scale(squared_ref, rows):
  return jax.lax.rsqrt(jnp.maximum(squared_ref[rows], TINY**2))


def _gate(objective, k_ML, rate_1L, along_ML, energy_1L):
  """(keep, write, b, 1 / length, code): a slot ŝ becomes keep·ŝ + write·h, which has length one."""
  code_ML = k_ML - along_ML if objective == "encoding" else k_ML
  b_ML = code_ML * rate_1L
  shrink_ML = jax.lax.rsqrt(1.0 + b_ML * b_ML * jnp.maximum(energy_1L - along_ML * along_ML, 0.0))
  return (1.0 - b_ML * along_ML) * shrink_ML, b_ML * shrink_ML, b_ML, shrink_ML, code_ML


def _normalise(layout, s_ref, squared_ref):
  for rows in _strips(layout, _STRIP):
    scale_ML = _scale(squared_ref, rows)

    def divide(j, _, rows=rows, scale_ML=scale_ML):
      s_ref[j, rows] = s_ref[j, rows] * scale_ML
      return 0

    _loop(layout.values, divide, 0)


def _over_parts(layout, x):
  """In every lane the sum over the lanes that hold its row."""
  shift = layout.rows
  while shift < LANES:
    x = x + pltpu.roll(x, shift, 1)
    shift *= 2
  return x


def _strips(layout, most):
  return [pl.ds(first, min(most, layout.slots - first)) for first in range(0, layout.slots, most)]


def _sum_strip(ref, j, rows, x_ML):
  """Adds the sum over a strip to a row, which the first strip begins."""
  x_1L = jnp.sum(x_ML, 0, keepdims=True)
  ref[pl.ds(j, 1)] = x_1L if rows.start == 0 else ref[pl.ds(j, 1)] + x_1L


def _code(ref, t, rows):
  return ref[0, t, rows].astype(jnp.float32)


def _loop(count, body, init):
  """Never whole in one piece, in which the compiler keeps more than there are registers."""
  unroll = next(turns for turns in _UNROLL if (count % turns == 0 and count > turns) or turns == 1)
  return jax.lax.fori_loop(0, count, body, init, unroll=unroll)
