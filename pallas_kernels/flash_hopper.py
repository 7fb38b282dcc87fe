"""Flash attention on a Hopper GPU over near keys and extra keys in one softmax: what flash.py does on a TPU.

Grids of blocks of two tiles of 64 tokens, a tile for each of two warpgroups, while a third fetches: forward and
gradient of the queries (batch, query heads, query blocks), gradient of near keys (batch, key heads, key blocks),
gradient of extra keys (batch, key heads, query blocks, extra tiles by two, or by one if there is only one). A block
keeps its own tiles, goes through the others in a ring of three places (hopper.py), and sums in registers: no sum has
more than one writer, and two runs are equal to the last bit.

Shared memory with elements of e bytes, beside a KiB a place: forward 64e(2K + 3(K + V)), gradients 64e·5(K + V).
Registers of a thread: V / 2 of sums forward, K / 2 of queries, (K + V) / 2 of keys, and about a hundred more.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import flash_hopper_kernels as kernels
from pallas_kernels.flash import Arrays, Plan, like, reach
from pallas_kernels.flash_hopper_kernels import COMPUTING, LOG2E, NUM_KNOWN, NUM_PLACE, PLACES
from pallas_kernels.hopper import ROWS, launch, matrices, reason_against_device, ring

TILE = COMPUTING * ROWS  # queries or near keys of a block
UNIT = 64  # of widths and of extra keys
# Key and value numbers of a head up to which these kernels were compiled for an H100 without spilling a register.
MOST_WIDTH = 128
AUTO_REASON = "its Hopper kernels compile for an H100 and have not been run on one; impl='pallas' takes them"


def supports(*, dtype: jnp.dtype, key_dim: int, value_dim: int) -> str | None:
  """Why these kernels do not take such heads; None if they do."""
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f"its Hopper kernels multiply bfloat16 and convert nothing, and these are {jnp.dtype(dtype).name}"
  if max(key_dim, value_dim) > MOST_WIDTH:
    return (f"its Hopper kernels keep sums in registers, for heads of at most {MOST_WIDTH} key and value numbers, not "
            f"{key_dim} and {value_dim}")
  return reason_against_device()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(plan: Plan, scale: float, floats: Arrays, fixed: Arrays) -> tuple[jax.Array, jax.Array]:
  """fp32 output [B, T, Q, V] and log-sum-exp [B, Q, T]; a query that sees nothing gets 0 and MASKED.

  Arguments as of `flash.attend`, but tokens come before heads: q [B, T, Q, K], k [B, T', H, K], v [B, T', H, V]. The
  tile is `TILE`, widths are multiples of `UNIT`, extra keys too (of two if there are more), elements are bfloat16.
  Scores are multiplied by `scale`. In place of positions floats may hold bias, fp32 [B, Q, T, near keys], which is
  added to scores; then a query block meets so many keys from the beginning of the key block of its own number.
  """
  return _forward(plan, scale, floats, fixed)[0]


def _forward(plan, scale, floats, fixed):
  queries, _ = _spans(plan, floats, fixed)
  q = _by_tile(floats["q"])
  batch, tiles, _, heads, _ = q.shape
  width = floats["v"].shape[-1]
  body = functools.partial(
    kernels.forward, group=_group(floats), scale=scale, extras=_num_extra_tiles(floats))
  out, lse = _launch(
    body, "flash_forward", plan, {"batch": batch, "head": heads, "block": tiles // COMPUTING},
    {"q": q} | _keys_of_blocks(floats, fixed, queries),
    {"out": jax.ShapeDtypeStruct((batch, tiles, ROWS, heads, width), jnp.float32),
     "lse": jax.ShapeDtypeStruct((batch, heads, tiles, ROWS), jnp.float32)},
    _room(floats, COMPUTING, "q") | _room(floats, PLACES, "k", "v"), kept=1, passing=3)
  result = out.reshape(batch, -1, heads, width), lse.reshape(batch, heads, -1)
  result = checkpoint_name(result, plan.boundary_name)
  return result, (floats, fixed, *result)


def _backward(plan, scale, saved, cotangents):
  floats, fixed, out, lse = saved
  d_out, d_lse = cotangents
  # d score = weight · (d weight − Σ weight·d weight + d lse); the sum is out · d out.
  shift = d_lse - jnp.swapaxes((out * d_out).sum(-1), 1, 2)
  stats = jnp.stack([x.reshape(*x.shape[:2], -1, ROWS) for x in (lse * LOG2E, shift)], 3)
  of_queries = {
    "q": _by_tile(floats["q"]), "d_out": _by_tile(d_out.astype(floats["v"].dtype)), "stats": stats,
    "query": _places(fixed["query"])}
  queries, keys = _spans(plan, floats, fixed)
  grads = _query_gradients(plan, scale, floats, of_queries | _keys_of_blocks(floats, fixed, queries))
  grads |= _near_key_gradients(plan, scale, floats, of_queries | _near_keys(floats, fixed, keys))
  if "extra_key" in floats:
    grads |= _extra_key_gradients(plan, scale, floats, of_queries | _extra_keys(floats, fixed))
  return {name: grads[name].reshape(x.shape).astype(x.dtype) for name, x in floats.items()}, None


attend.defvjp(_forward, _backward)


def _query_gradients(plan, scale, floats, operands):
  batch, tiles, _, heads, _ = operands["q"].shape
  body = functools.partial(
    kernels.query_gradients, group=_group(floats), scale=scale, extras=_num_extra_tiles(floats))
  names = [name for name in ("q", "bias") if name in operands]
  grads = _launch(
    body, "flash_query_gradients", plan, {"batch": batch, "head": heads, "block": tiles // COMPUTING}, operands,
    {f"d_{name}": like(operands[name]) for name in names},
    _room(floats, COMPUTING, "q", "d_out") | _room(floats, PLACES, "k", "v"), kept=2, passing=3)
  return dict(zip(names, grads, strict=True))


def _near_key_gradients(plan, scale, floats, operands):
  batch, tiles, _, kv_heads, _ = operands["k"].shape
  if "bias" in operands:
    operands |= {"bias": jnp.swapaxes(operands["bias"], 3, 5)}
  body = functools.partial(
    kernels.near_key_gradients, group=_group(floats), scale=scale, key_reach=plan.key_reach)
  d_k, d_v = _launch(
    body, "flash_near_key_gradients", plan, {"batch": batch, "head": kv_heads, "block": tiles // COMPUTING}, operands,
    {"d_k": like(operands["k"]), "d_v": like(operands["v"])},
    _room(floats, COMPUTING, "k", "v") | _room(floats, PLACES, "q", "d_out"), kept=2, passing=4)
  return {"k": d_k, "v": d_v}


def _extra_key_gradients(plan, scale, floats, operands):
  """Gradients of what all query blocks share are summed over them afterwards."""
  batch, kv_heads, blocks, extras = operands["extra_place"].shape[:4]
  computing = min(extras, COMPUTING)
  body = functools.partial(kernels.extra_key_gradients, group=_group(floats), scale=scale, computing=computing)
  results = {
    f"d_{name[-1]}": jax.ShapeDtypeStruct((batch, kv_heads, blocks, *operands[name].shape[3:]), operands[name].dtype)
    for name in ("extra_k", "extra_v")}
  d_k, d_v = _launch(
    body, "flash_extra_key_gradients", plan,
    {"batch": batch, "head": kv_heads, "block": blocks, "extra": extras // computing}, operands, results,
    _room(floats, computing, "k", "v") | _room(floats, PLACES, "q", "d_out"), kept=2, passing=4, computing=computing)
  if floats["extra_key"].shape[2] == 1:
    d_k = d_k.astype(jnp.float32).sum(2)
  return {"extra_key": d_k, "extra_value": d_v}


def _launch(body, name, plan, grid, operands, results, room, *, kept, passing, computing=COMPUTING):
  """Results in order. kept, passing: copies that a warpgroup waits for at the start, and for a place of the ring."""
  return launch(
    body, name, grid, operands, results, room | ring(PLACES, passing, computing) | {
      "place": plgpu.SMEM((PLACES, NUM_PLACE, ROWS), jnp.int32),
      "known": plgpu.SMEM((PLACES, NUM_KNOWN, ROWS), jnp.float32),
      "ready": plgpu.Barrier(num_arrivals=kept, num_barriers=computing)},
    computing=computing, interpret=plan.interpret)


def _room(floats, num, *names):
  """Shared memory for so many tiles of each."""
  widths = {name: floats["v" if name in ("v", "d_out") else "k"].shape[-1] for name in names}
  return {f"{name}_tile": matrices(num, width, floats["q"].dtype) for name, width in widths.items()}


def _keys_of_blocks(floats, fixed, spans):
  """Operands of kernels that go through all keys of a block of queries."""
  operands = {"query": _places(fixed["query"])} | _near_keys(floats, fixed, spans)
  return operands | (_extra_keys(floats, fixed) if "extra_key" in floats else {})


def _near_keys(floats, fixed, spans):
  first, count = (x.reshape(floats["q"].shape[0], -1) for x in spans)
  operands = {
    "k": _by_tile(floats["k"]), "v": _by_tile(floats["v"]), "key": _places(fixed["key"]), "first": first,
    "count": count}
  if "bias" in floats:
    bias = floats["bias"]
    operands["bias"] = bias.reshape(*bias.shape[:2], -1, ROWS, bias.shape[3] // ROWS, ROWS)
  return operands


def _spans(plan, floats, fixed):
  """As `reach`: without a bias what the data say, with one all blocks that it speaks of."""
  if "bias" not in floats:
    return reach(plan.tile, fixed["query"], fixed["key"])
  batch, num_queries, num_keys = (floats[name].shape[n] for name, n in (("q", 0), ("q", 1), ("k", 1)))
  query_N, key_N = jnp.arange(num_queries // plan.tile), jnp.arange(num_keys // plan.tile)
  steps = floats["bias"].shape[3] // plan.tile
  first_N = jnp.maximum(key_N - steps + 1, 0)
  of_keys = first_N, jnp.minimum(key_N, query_N[-1]) + 1 - first_N
  return tuple(
    tuple(jnp.tile(x_N.astype(jnp.int32), batch) for x_N in spans)
    for spans in ((query_N, jnp.full_like(query_N, steps)), of_keys))


def _extra_keys(floats, fixed):
  def by_tile(x):
    return x.reshape(*x.shape[:3], -1, ROWS, x.shape[-1])

  place = fixed["extra_place"][:, :, :, :NUM_PLACE]
  return {
    "extra_k": by_tile(floats["extra_key"]), "extra_v": by_tile(floats["extra_value"]),
    "extra_place": jnp.swapaxes(place.reshape(*place.shape[:4], -1, ROWS), 3, 4)}


def _by_tile(x_BTHK):
  return x_BTHK.reshape(x_BTHK.shape[0], -1, ROWS, *x_BTHK.shape[2:])


def _places(rows_B8T):
  """[B, 8, T] → [B, tiles, rows, tokens of a tile]."""
  rows = rows_B8T[:, :NUM_PLACE]
  return jnp.swapaxes(rows.reshape(*rows.shape[:2], -1, ROWS), 1, 2)


def _group(floats):
  return floats["q"].shape[2] // floats["k"].shape[2]


def _num_extra_tiles(floats):
  return floats["extra_key"].shape[3] // ROWS if "extra_key" in floats else 0
