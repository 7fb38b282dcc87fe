"""Windowed causal attention with sinks, documents and grouped queries, (out, lse).

Its kernels are those of flash.py on a TPU, of flash_hopper.py on a Hopper GPU.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pallas_kernels import on_hopper
from pallas_kernels.flash import EMPTY_KEY, EMPTY_QUERY, FAR_BACK, Plan, attend, reach
from pallas_kernels.flash_kernels import ID, SHOWN
from pallas_kernels.tiles import LANES, VMEM_BUDGET, auto_axes, eight_rows, mesh_axis, on_parts, pad_to, round_up

TILES = (256, 128)


def supports(
  *, dtype: jnp.dtype, key_dim: int, value_dim: int, heads: int, kv_heads: int, window: int = 0, sinks: int = 0,
) -> str | None:
  """Why no kernel does this, wherever it runs; None if one does."""
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    return f"its kernels take float32 and bfloat16, not {jnp.dtype(dtype).name}"
  if heads % kv_heads:
    return f"its kernels give each of {kv_heads} key heads equally many query heads, and {heads} cannot be divided so"
  if sinks and not window:
    return f"sinks={sinks} are tokens that a window would hide, and there is no window"
  if vmem_bytes(TILES[-1], jnp.dtype(dtype).itemsize, key_dim, value_dim, sinks) > VMEM_BUDGET:
    return f"heads of {key_dim} key and {value_dim} value numbers do not fit the vector memory of a TPU"
  return None


def vmem_bytes(tile: int, itemsize: int, key_dim: int, value_dim: int, extra: int) -> int:
  """Of the backward pass, which needs most."""
  key_dim, value_dim, extra = (round_up(size, LANES) for size in (key_dim, value_dim, extra))
  tokens = 2 * itemsize * tile * (3 * key_dim + 3 * value_dim) + 4 * tile * (key_dim + value_dim)
  return tokens + 2 * itemsize * extra * (key_dim + value_dim) + 28 * tile * max(tile, extra)


def choose_tile(length: int, itemsize: int, key_dim: int, value_dim: int, extra: int) -> int:
  """The largest tile that a row of tokens fills and that fits."""
  fitting = (tile for tile in TILES if length >= tile
             and vmem_bytes(tile, itemsize, key_dim, value_dim, extra) <= VMEM_BUDGET)
  return next(fitting, TILES[-1])


def window_attention(
  q: jax.Array, k: jax.Array, v: jax.Array, query_index: jax.Array, query_id: jax.Array,
  key_index: jax.Array | None = None, key_id: jax.Array | None = None, is_sink: jax.Array | None = None, *,
  window: int = 0, skip: int = 0, sinks: int = 0, backend: str = "tpu", tile: int | None = None,
  interpret: object = False, boundary_name: str = "memory_boundary",
) -> tuple[jax.Array, jax.Array]:
  """Softmax attention, scaled by K^-1/2: fp32 output [B, T, Q, V] and log-sum-exp [B, T, Q].

  A query that sees nothing gets 0 and −1e30. Differentiable in q, k and v, through both results. Under a mesh of Auto
  axes "data" and "model", rows are split over the first and heads over the second.

  Args:
    q: [B, T, Q, K]; query head h·G + g reads key head h.
    k, v: [B, S, H, K], [B, S, H, V].
    query_index, query_id: int32 [B, T]; see `key_index`.
    key_index: int32 [B, S], grows along a row; a key is seen by queries of its document at most `window` − 1 after it.
      None: keys are the queries' own tokens, and the index grows by one a token.
    key_id: int32 [B, S], the document, −1 for a place without a token. Documents of a row follow one another.
    is_sink: bool [B, S], keys that all later queries of their document see. None, the first `sinks` of each document.
    window: 0 is no limit.
    skip: nearest tokens that a query does not see, itself the first of them.
    sinks: greatest number of sinks of a document, which follow one another.
    backend: "tpu" or "gpu", whose kernels are to run.
    tile: tokens of a block; a matter of cost alone, and no choice on a GPU.
    interpret: as of `pallas_call`.
    boundary_name: under which rematerialisation policies know what is kept for the backward pass.
  """
  is_self = key_index is None
  if is_self:
    key_index, key_id = query_index, query_id
  if is_sink is None:
    is_sink = _is_first(key_id, sinks)
  run = functools.partial(
    _local, window=window, skip=skip, sinks=sinks, is_self=is_self, backend=backend, tile=tile, interpret=interpret,
    boundary_name=boundary_name)
  rows, heads = mesh_axis("data", q.shape[0]), mesh_axis("model", q.shape[2], k.shape[2])
  if auto_axes():
    token, place = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    run = on_parts(run, (token, token, token, *(place,) * 5), (token, token))
  return run(q, k, v, query_index, query_id, key_index, key_id, is_sink)


def _local(q, k, v, query_index, query_id, key_index, key_id, is_sink, *, window, skip, sinks, is_self, backend, tile,
           interpret, boundary_name):
  """On one device."""
  (_, length, _, key_dim), slots, value_dim = q.shape, k.shape[1], v.shape[-1]
  unit = LANES
  if backend == "gpu":
    tile, unit = on_hopper.flash().TILE, on_hopper.flash().UNIT
  tile = tile or choose_tile(max(length, slots), q.dtype.itemsize, key_dim, value_dim, sinks)
  query_low = query_index - window + 1 if window else jnp.full_like(query_index, FAR_BACK)
  query_id = jnp.where(query_id < 0, EMPTY_QUERY, query_id)
  num_queries, num_keys = round_up(length, tile), round_up(slots, tile)
  floats = {
    name: pad_to(x, {1: size, 3: round_up(x.shape[3], unit)})
    for name, x, size in (("q", q, num_queries), ("k", k, num_keys), ("v", v, num_keys))}
  query_place = (
    _fill(query_index - skip, num_queries, 0), _fill(query_id, num_queries, EMPTY_QUERY),
    _fill(query_low, num_queries, 0))
  key_shown = jnp.where(is_sink, -FAR_BACK, key_index)
  key_place = _fill(key_index, num_keys, 0), _fill(key_id, num_keys, EMPTY_KEY), _fill(key_shown, num_keys, 0)
  fixed = {"query": eight_rows(*query_place), "key": eight_rows(*key_place)}
  if sinks:
    floats["extra_key"], floats["extra_value"], fixed["extra_place"] = _sinks_before(
      tile, round_up(sinks, unit if sinks <= unit else LANES), floats, fixed)
  most = max(num_queries, num_keys) // tile
  steps = min(most, -(-(window - 1) // tile) + 1) if is_self and window else most
  plan = Plan(tile=tile, steps=steps, interpret=interpret, boundary_name=boundary_name)
  run = on_hopper.flash().attend if backend == "gpu" else _attend_on_tpu
  out, lse = run(plan, key_dim**-0.5, floats, fixed)
  return out[:, :length, :, :value_dim], jnp.swapaxes(lse, 1, 2)[:, :length]


def _attend_on_tpu(plan, scale, floats, fixed):
  """Its kernels take heads before tokens, and queries that are scaled."""
  heads_first = {name: jnp.swapaxes(floats[name], 1, 2) for name in ("q", "k", "v")}
  heads_first["q"] *= jnp.asarray(scale, heads_first["q"].dtype)
  out, lse = attend(plan, floats | heads_first, fixed)
  return jnp.swapaxes(out, 1, 2), lse


def _sinks_before(tile, num_extra, floats, fixed):
  """Keys, values and places of the sinks that come before the near blocks of each query block, as its extra keys.

  They are those of the document that the block begins in: documents that begin later have theirs in near blocks.
  """
  key_id_BS, slots = fixed["key"][:, ID], fixed["key"].shape[2]
  is_sink_BS = fixed["key"][:, SHOWN] == -FAR_BACK
  (first_BN, count_BN), _ = reach(tile, fixed["query"], fixed["key"])
  id_BN1 = fixed["query"][:, ID, ::tile, None]
  near_BN1 = jnp.where(count_BN > 0, first_BN * tile, slots).reshape(id_BN1.shape)
  first_BN = (is_sink_BS[:, None] & (key_id_BS[:, None] == id_BN1)).argmax(-1)
  slot_BNE = first_BN[..., None] + jnp.arange(num_extra)

  def take(x_BS):
    return jax.vmap(lambda x_S, slot_NE: x_S[slot_NE])(x_BS, jnp.minimum(slot_BNE, slots - 1))

  is_used_BNE = take(is_sink_BS) & (take(key_id_BS) == id_BN1) & (slot_BNE < near_BN1)
  place = eight_rows(jnp.zeros_like(slot_BNE), jnp.where(is_used_BNE, id_BN1, EMPTY_KEY))
  key, value = (jnp.moveaxis(take(floats[name]), 3, 1) for name in ("k", "v"))
  return key, value, jnp.broadcast_to(place[:, None], (*key.shape[:3], *place.shape[2:]))


def _is_first(id_BS, sinks):
  """Bool [B, S]: the first `sinks` tokens of each document, before which that many slots back is another."""
  before_BS = jnp.pad(id_BS, ((0, 0), (sinks, 0)), constant_values=EMPTY_KEY)[:, :id_BS.shape[1]]
  return (id_BS >= 0) & (id_BS != before_BS)


def _fill(x_BT, length, value):
  return pad_to(x_BT, {1: length}, value)
