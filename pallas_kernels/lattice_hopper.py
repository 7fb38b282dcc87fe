"""Exact Lattice recurrence on Hopper GPUs: one warpgroup a head, its slots in registers from first to last token.

Grid: rows, where a row is one head of one sequence. A block holds the slots [M, V], and going back their cotangent
too, in fp32 registers (M·V / 128 a thread each), and streams tiles of C tokens through shared memory, two at a time:
codes [C, M], values [C, V], a row of gates (C rates, then C flags of first tokens), and the slots before the tile
[M, V], which the forward pass saves. The adjoint makes the slots before every token of a tile again, keeps them in
shared memory, and goes back through them. M is filled up to a multiple of 64 and V to one of 32 with zeros, which
change nothing. Sums are fp32; a slot is divided by its true length at every token, and a replay gives the same bits.

Shared memory: going back (C + 4)·4MV bytes for slots and 2·C·((2M + V)·e + 4·(3M + 2V)) for tiles of tokens with
elements of e bytes; forward less.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import SEMANTICS, bring, load, over_keys, over_values, store, take_away, token_specs
from pallas_kernels.tiles import round_up

TINY = 1e-12
_TILES = (8, 4, 2)
_BLOCK_BYTES = 226 << 10  # of 227 KiB; the rest holds barriers
_GATES = 32  # numbers in a row of gates: copies are of multiples of 128 bytes
_LAYOUT = plgpu.Layout.WGMMA
_SLOTS, _VALUES = _LAYOUT.reduce(1), _LAYOUT.reduce(0)
_SCRATCH_BYTES = 4096  # of sums across warps
_PARAMS = plgpu.CompilerParams(reduction_scratch_bytes=_SCRATCH_BYTES, lowering_semantics=SEMANTICS)


def tile_len(num_slots: int, value_dim: int, itemsize: int) -> int | None:
  """Tokens of a tile for heads of this size, such that the backward pass fits; None where they are too large."""
  wide, deep = round_up(num_slots, 64), round_up(value_dim, 32)
  token_bytes = (2 * wide + deep) * itemsize + (3 * wide + 2 * deep) * 4
  for tile in _TILES:
    used = (tile + 4) * 4 * wide * deep + 2 * (tile * token_bytes + 4 * _GATES) + _SCRATCH_BYTES
    if used <= _BLOCK_BYTES:
      return tile
  return None


def forward(
  objective: str, q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, is_start: jax.Array, start: jax.Array,
  slots: jax.Array, *, keeps_boundary: bool,
) -> tuple[jax.Array, ...]:
  """Out [B, T, H, V], last slots [B, H, M, V], and if asked for the filled-up slots before each tile; all fp32."""
  batch, length, heads, num_slots = q.shape
  value_dim = v.shape[-1]
  tile = tile_len(num_slots, value_dim, q.dtype.itemsize)
  q, k, v, gates, start, slots = _fill(tile, q, k, v, rate, is_start, start, slots)
  state = start.shape[1:]
  boundary = jax.ShapeDtypeStruct((batch, heads, q.shape[1] // tile, *state), jnp.float32)

  def lattice_forward(*refs):
    _forward_kernel(objective, tile, refs[:6], refs[6:-3], *refs[-3:])

  out, last, *boundary = plgpu.kernel(
    lattice_forward, out_type=(*_like(v, slots), boundary)[:2 + keeps_boundary], grid=(batch, heads),
    grid_names=("batch", "head"), scratch_types=[*[plgpu.SMEM(state, jnp.float32)] * 2, plgpu.Barrier()],
    compiler_params=_PARAMS)(q, k, v, gates, start, slots)
  return out[:, :length, :, :value_dim], last[:, :, :num_slots, :value_dim], *boundary


def backward(
  objective: str, q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, is_start: jax.Array, start: jax.Array,
  boundary: jax.Array, d_out: jax.Array, d_last: jax.Array,
) -> tuple[jax.Array, ...]:
  """Cotangents of q, k, v, rate, start and slots, fp32."""
  batch, length, heads, num_slots = q.shape
  value_dim = v.shape[-1]
  tile = tile_len(num_slots, value_dim, q.dtype.itemsize)
  d_out = _fill(tile, q, k, d_out, rate, is_start, start, d_last)[2]
  q, k, v, gates, start, d_last = _fill(tile, q, k, v, rate, is_start, start, d_last)
  wide, deep = start.shape[1:]

  def lattice_backward(*refs):
    _backward_kernel(objective, tile, *refs)

  d_q, d_k, d_v, d_rate, d_start, d_slots = plgpu.kernel(
    lattice_backward, out_type=_like(q, k, v, q, d_last, d_last), grid=(batch, heads), grid_names=("batch", "head"),
    scratch_types=[
      plgpu.SMEM((tile, wide, deep), jnp.float32), *[plgpu.SMEM((wide, deep), jnp.float32)] * 2, plgpu.Barrier()],
    compiler_params=_PARAMS)(q, k, v, gates, start, boundary, d_out, d_last)
  return (
    d_q[:, :length, :, :num_slots], d_k[:, :length, :, :num_slots], d_v[:, :length, :, :value_dim],
    d_rate[:, :length].sum(-1), d_start.sum(0)[:, :num_slots, :value_dim], d_slots[:, :, :num_slots, :value_dim])


def _like(*arrays):
  return tuple(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in arrays)


def _fill(tile, q, k, v, rate, is_start, start, slots):
  """Whole tiles of tokens, whole blocks of slots and values; gates [B, H, N, 32]."""
  tokens, wide, deep = -q.shape[1] % tile, -q.shape[3] % 64, -v.shape[3] % 32

  def pad(x, *after):
    return jnp.pad(x, [(0, size) for size in after]) if any(after) else x

  def by_tile(x_BHT):
    return pad(x_BHT.astype(jnp.float32), 0, 0, tokens).reshape(*x_BHT.shape[:2], -1, tile)

  rate = jnp.swapaxes(rate, 1, 2)
  gates = jnp.concatenate([by_tile(rate), by_tile(jnp.broadcast_to(is_start[:, None], rate.shape))], -1)
  return (
    pad(q, 0, tokens, 0, wide), pad(k, 0, tokens, 0, wide), pad(v, 0, tokens, 0, deep),
    pad(gates, 0, 0, 0, _GATES - 2 * tile), pad(start, 0, wide, deep), pad(slots, 0, 0, wide, deep))


def _forward_kernel(objective, tile, input_refs, result_refs, state_ref, fresh_ref, barrier):
  q_ref, k_ref, v_ref, gate_ref, start_ref, slots_ref = input_refs
  out_ref, last_ref, *boundary_ref = result_refs
  batch, head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
  bring(slots_ref.at[batch, head], state_ref, barrier)
  bring(start_ref.at[head], fresh_ref, barrier)

  def one_tile(_, q_tile, k_tile, v_tile, gate_tile, out_tile, *rest):
    *boundary_tile, s_MV = rest
    if boundary_tile:
      store(boundary_tile[0], (0,), s_MV)

    def one_token(t, s_MV):
      s_MV = _restart(gate_tile[0, tile + t], fresh_ref, s_MV)
      s_MV = _move(objective, s_MV, _row(k_tile, t, _SLOTS), _row(v_tile, t, _VALUES), gate_tile[0, t])[0]
      store(out_tile, (t,), jnp.sum(over_values(_row(q_tile, t, _SLOTS), s_MV) * s_MV, axis=0))
      return s_MV

    return jax.lax.fori_loop(0, tile, one_token, s_MV)

  codes, values, gates, state = token_specs(tile, *state_ref.shape, _GATES, lambda n: n)
  s_MV = plgpu.emit_pipeline(
    one_tile, grid=(gate_ref.shape[2],), in_specs=[codes, codes, values, gates],
    out_specs=[values, state][:1 + len(boundary_ref)], max_concurrent_steps=2, init_carry=_state(state_ref),
  )(
    q_ref.at[batch, :, head], k_ref.at[batch, :, head], v_ref.at[batch, :, head], gate_ref.at[batch, head],
    out_ref.at[batch, :, head], *(ref.at[batch, head] for ref in boundary_ref))
  store(state_ref, (), s_MV)
  take_away(state_ref, last_ref.at[batch, head])


def _backward_kernel(objective, tile, q_ref, k_ref, v_ref, gate_ref, start_ref, boundary_ref, d_out_ref, d_last_ref,
                     d_q_ref, d_k_ref, d_v_ref, d_rate_ref, d_start_ref, d_slots_ref, before_ref, fresh_ref,
                     d_fresh_ref, barrier):
  batch, head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
  wide, deep = fresh_ref.shape
  # Of use before the first tile and after the last too.
  state_ref = before_ref.at[0]
  bring(d_last_ref.at[batch, head], state_ref, barrier)
  bring(start_ref.at[head], fresh_ref, barrier)
  d_s_MV = _state(state_ref)
  store(d_fresh_ref, (), d_s_MV * 0.0)

  def one_tile(_, q_tile, k_tile, v_tile, gate_tile, boundary_tile, d_out_tile, d_q_tile, d_k_tile, d_v_tile,
               d_rate_tile, d_s_MV):
    def replay(t, s_MV):
      s_MV = _restart(gate_tile[0, tile + t], fresh_ref, s_MV)
      store(before_ref, (t,), s_MV)
      return _move(objective, s_MV, _row(k_tile, t, _SLOTS), _row(v_tile, t, _VALUES), gate_tile[0, t])[0]

    jax.lax.fori_loop(0, tile, replay, _state(boundary_tile.at[0]))

    def go_back(i, d_s_MV):
      t = tile - 1 - i
      token = _row(q_tile, t, _SLOTS), _row(k_tile, t, _SLOTS), _row(v_tile, t, _VALUES), gate_tile[0, t]
      d_s_MV, *d_token = _token_adjoint(
        objective, _state(before_ref.at[t]), token, _row(d_out_tile, t, _VALUES), d_s_MV)
      for d_tile, d_row in zip((d_q_tile, d_k_tile, d_v_tile, d_rate_tile), d_token, strict=True):
        store(d_tile, (t,), d_row)

      @pl.when(gate_tile[0, tile + t] != 0)
      def _():
        store(d_fresh_ref, (), _state(d_fresh_ref) + d_s_MV)

      return d_s_MV * (1.0 - gate_tile[0, tile + t])

    return jax.lax.fori_loop(0, tile, go_back, d_s_MV)

  tiles = boundary_ref.shape[2]
  codes, values, gates, state = token_specs(tile, wide, deep, _GATES, lambda n: tiles - 1 - n)
  d_s_MV = plgpu.emit_pipeline(
    one_tile, grid=(tiles,), in_specs=[codes, codes, values, gates, state, values],
    out_specs=[codes, codes, values, codes], max_concurrent_steps=2, init_carry=d_s_MV,
  )(
    q_ref.at[batch, :, head], k_ref.at[batch, :, head], v_ref.at[batch, :, head], gate_ref.at[batch, head],
    boundary_ref.at[batch, head], d_out_ref.at[batch, :, head], d_q_ref.at[batch, :, head], d_k_ref.at[batch, :, head],
    d_v_ref.at[batch, :, head], d_rate_ref.at[batch, :, head])
  store(state_ref, (), d_s_MV)
  take_away(state_ref, d_slots_ref.at[batch, head])
  take_away(d_fresh_ref, d_start_ref.at[batch, head])


def _move(objective, s_MV, k_M, v_V, rate):
  """The slots after one token, and what was computed on the way: h, ŝ·h, b, code, 1 / length."""
  h_V = v_V
  if objective == "decoding":
    h_V = v_V - jnp.sum(over_values(k_M, s_MV) * s_MV, axis=0)
  h_MV = over_keys(h_V, s_MV)
  along_M = jnp.sum(s_MV * h_MV, axis=1)
  code_M = k_M - along_M if objective == "encoding" else k_M
  b_M = code_M * rate
  moved_MV = over_values(1.0 - b_M * along_M, s_MV) * s_MV + over_values(b_M, s_MV) * h_MV
  shrink_M = jax.lax.rsqrt(jnp.maximum(jnp.sum(moved_MV * moved_MV, axis=1), TINY**2))
  return moved_MV * over_values(shrink_M, s_MV), h_MV, along_M, b_M, code_M, shrink_M


def _token_adjoint(objective, s_MV, token, d_out_V, d_after_MV):
  """Cotangents of the slots before a token, of q, k, v, and of rate by slot (its README, exact scan)."""
  q_M, k_M, v_V, rate = token
  _, h_MV, along_M, b_M, code_M, shrink_M = _move(objective, s_MV, k_M, v_V, rate)
  keep_M, write_M = (1.0 - b_M * along_M) * shrink_M, b_M * shrink_M
  d_out_MV = over_keys(d_out_V, s_MV)
  d_q_M = keep_M * jnp.sum(s_MV * d_out_MV, axis=1) + write_M * jnp.sum(h_MV * d_out_MV, axis=1)
  x_MV = d_after_MV + over_values(q_M, s_MV) * d_out_MV
  x_s_M, x_h_M, energy_M = (jnp.sum(product, axis=1) for product in (x_MV * s_MV, x_MV * h_MV, h_MV * h_MV))
  radial_M = keep_M * x_s_M + write_M * x_h_M
  d_a_M = (x_s_M - radial_M * (keep_M + write_M * along_M)) * shrink_M
  d_b_M = (x_h_M - radial_M * (keep_M * along_M + write_M * energy_M)) * shrink_M - d_a_M * along_M
  d_k_M = d_b_M * rate
  d_along_M = -d_a_M * b_M
  if objective == "encoding":
    d_along_M = d_along_M - d_k_M
  mixed_M = d_along_M - write_M * radial_M * keep_M
  d_h_V = jnp.sum(
    over_values(write_M, s_MV) * x_MV + over_values(mixed_M, s_MV) * s_MV
    - over_values(write_M * write_M * radial_M, s_MV) * h_MV, axis=0)
  d_s_MV = over_values(keep_M, s_MV) * x_MV - over_values(keep_M * keep_M * radial_M, s_MV) * s_MV
  d_s_MV = d_s_MV + over_values(mixed_M, s_MV) * h_MV
  if objective == "decoding":
    d_h_MV = over_keys(d_h_V, s_MV)
    d_k_M = d_k_M - jnp.sum(s_MV * d_h_MV, axis=1)
    d_s_MV = d_s_MV - over_values(k_M, s_MV) * d_h_MV
  return d_s_MV, d_q_M, d_k_M, d_h_V, d_b_M * code_M


def _state(ref):
  return load(ref, (), _LAYOUT)


def _row(ref, t, layout):
  return load(ref, (t,), layout).astype(jnp.float32)


def _restart(is_start, fresh_ref, s_MV):
  """The slots of a new document where one begins."""
  return jax.lax.cond(is_start != 0, lambda: _state(fresh_ref), lambda: s_MV)
