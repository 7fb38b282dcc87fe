"""The delta rule with decays on Hopper GPUs, token by token: a warpgroup keeps some values of a head in registers.

Columns of a memory do not meet, so a block takes V values of the head's, and what the backward pass sums over all
values is left in a part for each block, which XLA adds up. Decays of heads are spread over channels: that costs K fp32
numbers a token to read, of some ten times as many, and leaves one program for both.

Grid: sequences × heads × parts of values. A block holds the memory [K, V], and going back its cotangent too, in fp32
registers (K·V / 128 a thread each), and streams tiles of C tokens through shared memory, two at a time: q, k, decays
[C, K], values [C, V], a row of C steps, and the memory before the tile [K, V], which the forward pass saves. The
adjoint makes the memory before every token of a tile again, keeps them in shared memory, and goes back through them. K
is filled up to a multiple of 64 and V to one of 32 with zeros, which change nothing. Sums are fp32; a replay gives the
same bits.

Shared memory: going back (C + 2)·4KV bytes for memories and 2·C·(2K·e + V·e + 4·(4K + 3V)) for tiles of tokens with
elements of e bytes; forward less.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.hopper import (
  SEMANTICS,
  bring,
  load,
  over_keys,
  over_values,
  reason_against_device,
  store,
  take_away,
  token_specs,
)
from pallas_kernels.tiles import pad_to, round_up

VALUES = 32  # of a part
MOST_KEYS = 128
AUTO_REASON = "its Hopper kernel compiles for an H100 and has not been run on one; impl='pallas' takes it"
_TILES = (8, 4, 2)
_BLOCK_BYTES = 226 << 10  # of 227 KiB; the rest holds barriers
_STEPS = 32  # numbers in a row of steps: copies are of multiples of 128 bytes
_LAYOUT = plgpu.Layout.WGMMA
_KEYS_LAYOUT, _VALUES_LAYOUT = _LAYOUT.reduce(1), _LAYOUT.reduce(0)
_SCRATCH_BYTES = 4096  # of sums across warps
_PARAMS = plgpu.CompilerParams(reduction_scratch_bytes=_SCRATCH_BYTES, lowering_semantics=SEMANTICS)


def supports(*, key_dim: int) -> str | None:
  """Why no kernel runs heads with so many keys on this machine's GPU; None if one does."""
  if key_dim > MOST_KEYS:
    return f"its Hopper kernel keeps a head's keys in registers, at most {MOST_KEYS} numbers, not {key_dim}"
  return reason_against_device()


def tile_len(key_dim: int, itemsize: int) -> int:
  """Tokens of a tile for heads with so many keys, such that the backward pass fits."""
  wide = round_up(key_dim, 64)
  token_bytes = (2 * wide + VALUES) * itemsize + (4 * wide + 3 * VALUES) * 4
  for tile in _TILES:
    used = (tile + 2) * 4 * wide * VALUES + 2 * (tile * token_bytes + 4 * _STEPS) + _SCRATCH_BYTES
    if used <= _BLOCK_BYTES:
      break
  return tile


def forward(
  q: jax.Array, k: jax.Array, v: jax.Array, step: jax.Array, decay: jax.Array, memory: jax.Array, *,
  keeps_boundary: bool,
) -> tuple[jax.Array, ...]:
  """Out [B, T, H, V], last memory [B, H, K, V], and if asked for the memory before each tile, in parts; all fp32.

  Args:
    q, k: [B, T, H, K].
    v: [B, T, H, V].
    step: [B, T, H].
    decay: [B, T, H, K].
    memory: fp32 [B, H, K, V], before the first token.
    keeps_boundary: whether the backward pass will follow.
  """
  tile, shape = tile_len(q.shape[-1], q.dtype.itemsize), (*q.shape, v.shape[-1])
  packed = _pack(tile, q, k, v, step, decay, memory)
  batch, heads, parts, *state = packed[-1].shape
  num_tiles = packed[3].shape[2]
  results = (
    jax.ShapeDtypeStruct(packed[2].shape, jnp.float32), jax.ShapeDtypeStruct(packed[-1].shape, jnp.float32),
    jax.ShapeDtypeStruct((batch, heads, parts, num_tiles, *state), jnp.float32))

  def delta_forward(*refs):
    _forward_kernel(tile, refs[:6], refs[6:-2], *refs[-2:])

  out, last, *boundary = plgpu.kernel(
    delta_forward, out_type=results[:2 + keeps_boundary], grid=(batch, heads, parts),
    grid_names=("batch", "head", "part"), scratch_types=[plgpu.SMEM(tuple(state), jnp.float32), plgpu.Barrier()],
    compiler_params=_PARAMS)(*packed)
  return _joined_tokens(out, shape), _joined_memory(last, shape), *boundary


def backward(
  q: jax.Array, k: jax.Array, v: jax.Array, step: jax.Array, decay: jax.Array, boundary: jax.Array, d_out: jax.Array,
  d_last: jax.Array,
) -> tuple[jax.Array, ...]:
  """Cotangents of q, k, v, step, decay and memory, fp32. boundary: as `forward` returns it."""
  tile, shape = tile_len(q.shape[-1], q.dtype.itemsize), (*q.shape, v.shape[-1])
  q, k, v, step_row, decay, d_last = _pack(tile, q, k, v, step, decay, d_last)
  d_out = _in_parts(tile, d_out)
  batch, heads, parts, *state = d_last.shape
  of_keys = jax.ShapeDtypeStruct((*q.shape[:3], parts, q.shape[3]), jnp.float32)
  of_values = jax.ShapeDtypeStruct(v.shape, jnp.float32)

  def delta_backward(*refs):
    _backward_kernel(tile, *refs)

  *of_tokens, d_memory = plgpu.kernel(
    delta_backward,
    out_type=(of_keys, of_keys, of_keys, of_values, of_values, jax.ShapeDtypeStruct(d_last.shape, jnp.float32)),
    grid=(batch, heads, parts), grid_names=("batch", "head", "part"),
    scratch_types=[plgpu.SMEM((tile, *state), jnp.float32), plgpu.Barrier()], compiler_params=_PARAMS,
  )(q, k, v, step_row, decay, boundary, d_out, d_last)
  d_q, d_k, d_decay = (x.sum(3)[:, :shape[1], :, :shape[3]] for x in of_tokens[:3])
  d_u, by_step = (_joined_tokens(x, shape) for x in of_tokens[3:])
  return d_q, d_k, d_u * step.astype(jnp.float32)[..., None], by_step.sum(-1), d_decay, _joined_memory(d_memory, shape)


def _pack(tile, q, k, v, step, decay, memory):
  """Whole tiles of tokens, whole blocks of keys, values in parts; steps [B, H, N, 32]."""
  tokens, wide = round_up(q.shape[1], tile), round_up(q.shape[3], 64)
  step_BHT = pad_to(jnp.swapaxes(step.astype(jnp.float32), 1, 2), {2: tokens})
  step_BHNC = step_BHT.reshape(*step_BHT.shape[:2], -1, tile)
  memory = pad_to(memory, {2: wide, 3: round_up(memory.shape[3], VALUES)})
  memory_BHKPV = memory.reshape(*memory.shape[:3], -1, VALUES)
  return (
    pad_to(q, {1: tokens, 3: wide}), pad_to(k, {1: tokens, 3: wide}), _in_parts(tile, v),
    pad_to(step_BHNC, {3: _STEPS}), pad_to(decay.astype(jnp.float32), {1: tokens, 3: wide}, 1),
    jnp.swapaxes(memory_BHKPV, 2, 3))


def _in_parts(tile, v):
  """[B, T, H, V] → [B, T, H, parts, values]."""
  v = pad_to(v, {1: round_up(v.shape[1], tile), 3: round_up(v.shape[3], VALUES)})
  return v.reshape(*v.shape[:3], -1, VALUES)


def _joined_tokens(x_BTHPV, shape):
  return x_BTHPV.reshape(*x_BTHPV.shape[:3], -1)[:, :shape[1], :, :shape[4]]


def _joined_memory(x_BHPKV, shape):
  x_BHKPV = jnp.swapaxes(x_BHPKV, 2, 3)
  return x_BHKPV.reshape(*x_BHKPV.shape[:3], -1)[:, :, :shape[3], :shape[4]]


def _place():
  return jax.lax.axis_index("batch"), jax.lax.axis_index("head"), jax.lax.axis_index("part")


def _forward_kernel(tile, input_refs, result_refs, state_ref, barrier):
  q_ref, k_ref, v_ref, step_ref, decay_ref, memory_ref = input_refs
  out_ref, last_ref, *boundary_ref = result_refs
  batch, head, part = _place()
  bring(memory_ref.at[batch, head, part], state_ref, barrier)

  def one_tile(_, q_tile, k_tile, v_tile, step_tile, decay_tile, out_tile, *rest):
    *boundary_tile, s_KV = rest
    if boundary_tile:
      store(boundary_tile[0], (0,), s_KV)

    def one_token(t, s_KV):
      s_KV = _move(s_KV, _keys(k_tile, t), _values(v_tile, t), step_tile[0, t], _keys(decay_tile, t))[-1]
      store(out_tile, (t,), jnp.sum(over_values(_keys(q_tile, t), s_KV) * s_KV, axis=0))
      return s_KV

    return jax.lax.fori_loop(0, tile, one_token, s_KV)

  keys, values, steps, state = token_specs(tile, *state_ref.shape, _STEPS, lambda n: n)
  s_KV = plgpu.emit_pipeline(
    one_tile, grid=(step_ref.shape[2],), in_specs=[keys, keys, values, steps, keys],
    out_specs=[values, state][:1 + len(boundary_ref)], max_concurrent_steps=2, init_carry=_state(state_ref),
  )(
    q_ref.at[batch, :, head], k_ref.at[batch, :, head], v_ref.at[batch, :, head, part], step_ref.at[batch, head],
    decay_ref.at[batch, :, head], out_ref.at[batch, :, head, part],
    *(ref.at[batch, head, part] for ref in boundary_ref))
  store(state_ref, (), s_KV)
  take_away(state_ref, last_ref.at[batch, head, part])


def _backward_kernel(tile, q_ref, k_ref, v_ref, step_ref, decay_ref, boundary_ref, d_out_ref, d_last_ref, d_q_ref,
                     d_k_ref, d_decay_ref, d_u_ref, by_step_ref, d_memory_ref, before_ref, barrier):
  batch, head, part = _place()
  # Of use before the first tile and after the last too.
  state_ref = before_ref.at[0]
  bring(d_last_ref.at[batch, head, part], state_ref, barrier)
  d_s_KV = _state(state_ref)

  def one_tile(_, q_tile, k_tile, v_tile, step_tile, decay_tile, boundary_tile, d_out_tile, d_q_tile, d_k_tile,
               d_decay_tile, d_u_tile, by_step_tile, d_s_KV):
    def replay(t, s_KV):
      store(before_ref, (t,), s_KV)
      return _move(s_KV, _keys(k_tile, t), _values(v_tile, t), step_tile[0, t], _keys(decay_tile, t))[-1]

    jax.lax.fori_loop(0, tile, replay, _state(boundary_tile.at[0]))

    def go_back(i, d_s_KV):
      t = tile - 1 - i
      token = _keys(q_tile, t), _keys(k_tile, t), _values(v_tile, t), step_tile[0, t], _keys(decay_tile, t)
      d_s_KV, *d_token = _token_adjoint(_state(before_ref.at[t]), token, _values(d_out_tile, t), d_s_KV)
      for d_tile, d_row in zip((d_q_tile, d_k_tile, d_decay_tile, d_u_tile, by_step_tile), d_token, strict=True):
        store(d_tile, (t,), d_row)
      return d_s_KV

    return jax.lax.fori_loop(0, tile, go_back, d_s_KV)

  tiles = boundary_ref.shape[3]
  keys, values, steps, state = token_specs(tile, *before_ref.shape[1:], _STEPS, lambda n: tiles - 1 - n)
  d_s_KV = plgpu.emit_pipeline(
    one_tile, grid=(tiles,), in_specs=[keys, keys, values, steps, keys, state, values],
    out_specs=[keys, keys, keys, values, values], max_concurrent_steps=2, init_carry=d_s_KV,
  )(
    q_ref.at[batch, :, head], k_ref.at[batch, :, head], v_ref.at[batch, :, head, part], step_ref.at[batch, head],
    decay_ref.at[batch, :, head], boundary_ref.at[batch, head, part], d_out_ref.at[batch, :, head, part],
    *(ref.at[batch, :, head, part] for ref in (d_q_ref, d_k_ref, d_decay_ref, d_u_ref, by_step_ref)))
  store(state_ref, (), d_s_KV)
  take_away(state_ref, d_memory_ref.at[batch, head, part])


def _move(s_KV, k_K, v_V, step, decay_K):
  """The decayed memory, what it lacks of the value, and the memory after the token."""
  s_KV = over_values(decay_K, s_KV) * s_KV
  lacks_V = v_V - jnp.sum(over_values(k_K, s_KV) * s_KV, axis=0)
  return s_KV, lacks_V, s_KV + over_values(k_K, s_KV) * over_keys(lacks_V * step, s_KV)


def _token_adjoint(s_KV, token, d_out_V, d_after_KV):
  """Cotangents of the memory before a token, of q, k and decay, of the change u, and of the step, by value."""
  q_K, k_K, v_V, step, decay_K = token
  decayed_KV, lacks_V, after_KV = _move(s_KV, k_K, v_V, step, decay_K)
  d_out_KV = over_keys(d_out_V, s_KV)
  d_q_K = jnp.sum(after_KV * d_out_KV, axis=1)
  d_after_KV = d_after_KV + over_values(q_K, s_KV) * d_out_KV
  d_u_V = jnp.sum(over_values(k_K, s_KV) * d_after_KV, axis=0)
  d_v_KV = over_keys(d_u_V * step, s_KV)
  d_k_K = jnp.sum(d_after_KV * over_keys(lacks_V * step, s_KV) - decayed_KV * d_v_KV, axis=1)
  d_decayed_KV = d_after_KV - over_values(k_K, s_KV) * d_v_KV
  d_decay_K = jnp.sum(s_KV * d_decayed_KV, axis=1)
  return over_values(decay_K, s_KV) * d_decayed_KV, d_q_K, d_k_K, d_decay_K, d_u_V, d_u_V * lacks_V


def _state(ref):
  return load(ref, (), _LAYOUT)


def _keys(ref, t):
  return load(ref, (t,), _KEYS_LAYOUT).astype(jnp.float32)


def _values(ref, t):
  return load(ref, (t,), _VALUES_LAYOUT).astype(jnp.float32)
