"""Transformer-VQ attention: one softmax over near tokens, with positions, and one row per code for the rest.

The kernels are those of flash.py on a TPU, of flash_hopper.py on a Hopper GPU: near keys are the tokens since W before
a query block, extra keys the codebook with the log of each code's count as bias and the means of their values, which
XLA has ready before every block. A GPU's kernels take scores of positions ready-made, fp32 [B, Q, T, W + a block or
two], from XLA, which also goes back through them. Also here: the search of the nearest code, product and argmin in one
kernel, that of search_hopper.py on a Hopper GPU. On a TPU its grid is (batch, heads, tiles of C tokens), its
blocks k [C, K], the codebook [M, K] and codes [1, C]; VMEM 14CK + 8MK bytes. Products are fp32, of three bf16 parts
each, whose six greatest products are summed; a strip of codes at a time, so that distances stay in registers.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from pallas_kernels import on_hopper
from pallas_kernels.flash import EMPTY_KEY, EMPTY_QUERY, Plan, attend, position_blocks
from pallas_kernels.tiles import (
  LANES,
  SUBLANES,
  VMEM_BUDGET,
  auto_axes,
  dot,
  eight_rows,
  launch,
  mesh_axis,
  on_parts,
  pad_to,
  round_up,
)

TILES = (256, 128)


def supports(*, dtype: jnp.dtype, key_dim: int, value_dim: int, codes: int, window: int) -> str | None:
  """Why no kernel does this attention, wherever it runs; None if one does."""
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    return f"its kernels take float32 and bfloat16, not {jnp.dtype(dtype).name}"
  if not window:
    return "its kernels need a window of at least one token"
  if vmem_bytes(TILES[-1], jnp.dtype(dtype).itemsize, key_dim, value_dim, codes, window) > VMEM_BUDGET:
    return (f"heads of {key_dim} key and {value_dim} value numbers with a window of {window} do not fit the vector "
            "memory of a TPU")
  return None


def supports_search(*, key_dim: int, codes: int) -> str | None:
  """Why no kernel does this search, wherever it runs; None if one does."""
  if _search_bytes(TILES[-1], key_dim, codes) > VMEM_BUDGET:
    return f"a codebook of {codes} rows of {key_dim} does not fit the vector memory of a TPU"
  return None


def supports_span(span: int, *, backend: str = "tpu") -> str | None:
  """Why no kernel gives keys the gradient of spans of so many tokens; None if one does. 0 is the span of any tile."""
  tile = on_hopper.flash().TILE if backend == "gpu" else TILES[-1]
  return f"its kernels need blocks of whole tiles of {tile} tokens for such key gradients" if span % tile else None


def choose_tile(
  length: int, dtype: jnp.dtype, key_dim: int, value_dim: int, codes: int, window: int, *, span: int = 0,
  backend: str = "tpu",
) -> int:
  """Tokens of a query block: the largest that the call fills, that divides the span, and that fits."""
  if backend == "gpu":
    return on_hopper.flash().TILE
  fitting = (tile for tile in TILES if length >= tile and span % tile == 0 and vmem_bytes(
    tile, jnp.dtype(dtype).itemsize, key_dim, value_dim, codes, window + max(span - tile, 0)) <= VMEM_BUDGET)
  return next(fitting, TILES[-1])


def vmem_bytes(tile: int, itemsize: int, key_dim: int, value_dim: int, codes: int, window: int) -> int:
  """Of the backward pass, which needs most."""
  key_dim, value_dim = round_up(key_dim, LANES), round_up(value_dim, LANES)
  extra, blocks = _extra_tile(codes), -(-window // tile) + 1
  tokens = 2 * itemsize * tile * (6 * key_dim + 3 * value_dim) + 4 * tile * (2 * key_dim + value_dim)
  table = 8 * blocks * 2 * tile * key_dim
  return tokens + 2 * itemsize * extra * (key_dim + value_dim) + 4 * extra * value_dim + table + 40 * tile**2


def vq_attention(
  qu: jax.Array, qw: jax.Array, k: jax.Array, v: jax.Array, rows: jax.Array, relative: jax.Array, query_id: jax.Array,
  key_id: jax.Array, caches: tuple[jax.Array, jax.Array, jax.Array] | None, *, tile: int, span: int = 0,
  backend: str = "tpu", interpret: object = False, boundary_name: str = "memory_boundary",
) -> jax.Array:
  """fp32 output [B, T, Q, V] of T queries over the W slots before them, themselves, and a cache of what is older.

  The score of a slot at distance Δ is qu·k and, up to Δ = W, qw·relative[Δ] beside. Slots get key gradients from
  queries at most W later or, with a span, from all that do not meet them in a cache. Differentiable in all floats but
  counts. Under a mesh of Auto axes "data" and "model", batch rows are split over the first, and over the second heads
  or, where they cannot be, the width of values.

  Args:
    qu, qw: [B, T, Q, K] and [B, T, Q, R]; query head h·G + g reads key head h.
    k, v: [B, W + T, H, K] and [B, W + T, H, V].
    rows: [H, M, K].
    relative: [H, W + 1, R].
    query_id, key_id: int32 [B, T] and [B, W + T], documents; −1 is a slot without a token.
    caches: what is older than W before the tile of a query, or before its span, N = ⌈T / tile⌉ of them: means
      [N, B, H, M, V], fp32 counts [N, B, H, M], documents [N, B]. None leaves it out, and what is further back than W
      with it.
    tile: tokens of a block, of `choose_tile` for the backend.
    span: a multiple of the tile.
    backend: "tpu" or "gpu", whose kernels are to run.
    interpret: as of `pallas_call`.
    boundary_name: under which rematerialisation policies know what is kept for the backward pass.
  """
  heads = mesh_axis("model", qu.shape[2], k.shape[2])
  width = None if heads else mesh_axis("model", v.shape[3])
  batch = mesh_axis("data", qu.shape[0])
  run = functools.partial(
    _local, tile=tile, span=span, backend=backend, interpret=interpret, boundary_name=boundary_name)
  if auto_axes():
    token, place = PartitionSpec(batch, None, heads), PartitionSpec(batch)
    value = PartitionSpec(batch, None, heads, width)
    head = PartitionSpec(heads)
    cache = None if caches is None else (
      PartitionSpec(None, batch, heads, None, width), PartitionSpec(None, batch, heads), PartitionSpec(None, batch))
    run = on_parts(run, (token, token, token, value, head, head, place, place, cache), value)
  return run(qu, qw, k, v, rows, relative, query_id, key_id, caches)


def _local(qu, qw, k, v, rows, relative, query_id, key_id, caches, *, tile, span, backend, interpret, boundary_name):
  """On one device."""
  (batch, length), value_dim, window = query_id.shape, v.shape[-1], relative.shape[1] - 1
  behind = max(span - tile, 0)  # how much further back than W before it the last tile of a span sees
  relative = jnp.pad(relative, ((0, 0), (0, behind), (0, 0)))
  padded, reach = round_up(length, tile), round_up(window + behind, tile)
  unit, extra_tile = LANES, _extra_tile(rows.shape[1])
  if backend == "gpu":
    unit, extra_tile = on_hopper.flash().UNIT, on_hopper.flash().TILE
  # The stream starts on the grid of tiles, so that distances within a pair of blocks are known beforehand.
  ends = reach - window, padded - length
  floats = {
    name: jnp.pad(x, ((0, 0), (before, ends[1]), (0, 0), (0, -x.shape[-1] % unit)))
    for name, x, before in (("q", qu, 0), ("k", k, ends[0]), ("v", v, ends[0]))}
  qw = jnp.pad(qw, ((0, 0), (0, ends[1]), (0, 0), (0, 0)))
  time_T = jnp.arange(padded)
  grid = span or tile
  low_T = (time_T // grid * grid if caches is not None else time_T) - window
  slot_S = jnp.arange(reach + padded) - reach
  query_id = jnp.where(query_id < 0, EMPTY_QUERY, query_id)
  query_id = jnp.pad(query_id, ((0, 0), (0, ends[1])), constant_values=EMPTY_QUERY)
  key_id = jnp.pad(key_id, ((0, 0), ends), constant_values=EMPTY_KEY)
  in_all_rows = functools.partial(jnp.broadcast_to, shape=(batch, padded))
  fixed = {
    "query": eight_rows(in_all_rows(time_T), query_id, in_all_rows(low_T)),
    "key": eight_rows(*(x if x.ndim == 2 else jnp.broadcast_to(x, key_id.shape) for x in (slot_S, key_id, slot_S)))}
  if caches is not None:
    floats["extra_key"], floats["extra_value"], fixed["extra_place"] = _codes(
      rows.astype(qu.dtype), v.dtype, *caches, unit, extra_tile)
  plan = Plan(
    tile=tile, steps=reach // tile + 1, extra_tile=extra_tile, key_reach=None if span else window,
    interpret=interpret, boundary_name=boundary_name)
  run = _attend_on_gpu if backend == "gpu" else _attend_on_tpu
  return run(plan, floats, qw, relative.astype(qw.dtype), fixed)[:, :length, :, :value_dim]


def _attend_on_tpu(plan, floats, qw, relative_HSR, fixed):
  """Its kernels take heads before tokens, and positions as a table."""
  width = -qw.shape[-1] % LANES
  floats |= {name: jnp.swapaxes(floats[name], 1, 2) for name in ("q", "k", "v")}
  floats["qw"] = jnp.pad(jnp.swapaxes(qw, 1, 2), ((0, 0), (0, 0), (0, 0), (0, width)))
  floats["table"] = position_blocks(
    jnp.pad(relative_HSR, ((0, 0), (0, 0), (0, width))), relative_HSR.shape[1] - 1, plan.tile)
  return jnp.swapaxes(attend(plan, floats, fixed)[0], 1, 2)


def _attend_on_gpu(plan, floats, qw_BTQR, relative_HSR, fixed):
  """Its kernels take scores of positions, [B, Q, T, keys that a query block may see]."""
  (batch, length, heads, _), kv_heads, window = qw_BTQR.shape, relative_HSR.shape[0], relative_HSR.shape[1] - 1
  tile, reach = plan.tile, round_up(window, plan.tile)
  qw_BTHGR = qw_BTQR.reshape(batch, length, kv_heads, -1, qw_BTQR.shape[-1])
  score_BHGTS = jnp.einsum("BTHGR,HSR->BHGTS", qw_BTHGR, relative_HSR[:, ::-1], preferred_element_type=jnp.float32)
  # Token a of a block meets key x of those of the block at distance a + reach − x: row a moves a places to the right,
  # which rows that are longer by one than what is read of them do by themselves.
  span = reach + tile
  score = score_BHGTS.reshape(batch, heads, length // tile, tile, -1)
  score = jnp.pad(score, ((0, 0),) * 4 + ((reach - window, tile),)).reshape(*score.shape[:3], tile * (span + 1))
  bias = score[..., :tile * span].reshape(batch, heads, length, span)
  return on_hopper.flash().attend(plan, 1.0, floats | {"bias": bias}, fixed)[0]


def _codes(rows_HMK, dtype, mean_NBHMV, count_NBHM, document_NB, unit, extra_tile):
  """Codes as extra keys; a code without tokens gets an id that no query has."""
  batch, num_extra = count_NBHM.shape[1], round_up(rows_HMK.shape[1], extra_tile)
  key_HMK = pad_to(rows_HMK, {1: num_extra, 2: round_up(rows_HMK.shape[2], unit)})
  value_BHNMV = jnp.moveaxis(mean_NBHMV.astype(dtype), 0, 2)
  value_BHNMV = pad_to(value_BHNMV, {3: num_extra, 4: round_up(value_BHNMV.shape[4], unit)})
  count_BHNM = jnp.moveaxis(jax.lax.stop_gradient(count_NBHM), 0, 2)
  document_BHNM = jnp.broadcast_to(document_NB.T[:, None, :, None], count_BHNM.shape)
  bias_BHNM = jax.lax.bitcast_convert_type(jnp.log(jnp.maximum(count_BHNM, 1.0)), jnp.int32)
  id_BHNM = jnp.where(count_BHNM > 0, document_BHNM, EMPTY_KEY)
  place = eight_rows(pad_to(bias_BHNM, {3: num_extra}), pad_to(id_BHNM, {3: num_extra}, EMPTY_KEY))
  return jnp.broadcast_to(key_HMK[None, :, None], (batch, key_HMK.shape[0], 1, *key_HMK.shape[1:])), value_BHNMV, place


def _extra_tile(codes):
  return LANES if codes <= LANES else 2 * LANES


def nearest_code(
  k: jax.Array, rows: jax.Array, *, backend: str = "tpu", interpret: object = False,
) -> jax.Array:
  """Int32 [B, T, H]: the row of [H, M, K] nearest to each key [B, T, H, K] in squared distance; the lower of equals.

  In fp32, not differentiated. Under a mesh, and with backend and interpret, as `vq_attention`.
  """
  k, rows = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (k, rows))
  batch, heads = mesh_axis("data", k.shape[0]), mesh_axis("model", k.shape[2])
  run = functools.partial(on_hopper.search().nearest if backend == "gpu" else _nearest, interpret=interpret)
  if auto_axes():
    token = PartitionSpec(batch, None, heads)
    run = on_parts(run, (token, PartitionSpec(heads)), token)
  return run(k, rows)


def _nearest(k_BTHK, rows_HMK, *, interpret):
  """On one device."""
  batch, length, heads, key_dim = k_BTHK.shape
  num_codes, width = rows_HMK.shape[1], round_up(key_dim, LANES)
  tile = TILES[0] if length >= TILES[0] and _search_bytes(TILES[0], key_dim, num_codes) <= VMEM_BUDGET else TILES[-1]
  padded = round_up(length, tile)
  k_BHTK = pad_to(jnp.swapaxes(k_BTHK, 1, 2), {2: padded, 3: width})
  rows_HMK = pad_to(rows_HMK, {2: width})
  num_rows = round_up(num_codes, _codes_of_strip(tile))
  code = launch(
    functools.partial(_search, num_codes=num_codes), name="nearest_code", grid=(batch, heads, padded // tile),
    parallel=3, prefetch=(),
    operands={
      "k": (k_BHTK, (None, None, tile, width), lambda b, h, n: (b, h, n, 0)),
      "rows": (pad_to(rows_HMK, {1: num_rows}), (None, num_rows, width), lambda b, h, n: (h, 0, 0))},
    results={"code": (jax.ShapeDtypeStruct((batch, heads, 1, padded), jnp.int32), (None, None, 1, tile),
                      lambda b, h, n: (b, h, 0, n))},
    scratch={"parts": ((3, width, tile), jnp.bfloat16)},
    flops=2 * batch * heads * padded * num_rows * width, interpret=interpret)["code"]
  return jnp.swapaxes(code[:, :, 0, :length], 1, 2)


def _search(refs, *, num_codes):
  """A strip of codes at a time: the nearest so far in each of a register's eight rows, and its place."""
  for part, k in enumerate(_bf16_parts(refs["k"][...].T)):
    refs["parts"][part] = k
  tile = refs["k"].shape[0]
  shape, size = (SUBLANES, tile), _codes_of_strip(tile)

  def strip(s, best):
    first = pl.multiple_of(s * size, size)
    rows = refs["rows"][pl.ds(first, size)]
    parts = _bf16_parts(rows)
    # the smallest first
    product = sum(dot(parts[i], refs["parts"][total - i], 1, 0) for total in (2, 1, 0) for i in range(total + 1))
    is_code = first + jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0) < num_codes
    distance = jnp.where(is_code, 0.5 * (rows * rows).sum(1, keepdims=True), jnp.inf) - product
    for row in range(0, size, SUBLANES):
      least, place = best
      here = distance[row:row + SUBLANES]
      best = jnp.minimum(here, least), jnp.where(here < least, first + row, place)
    return best

  start = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
  least, place = jax.lax.fori_loop(0, refs["rows"].shape[0] // size, strip, start)
  place += jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  refs["code"][...] = jnp.where(least == least.min(0, keepdims=True), place, num_codes - 1).min(0, keepdims=True)


def _bf16_parts(x):
  """Three whose sum is x: eight bits of it each."""
  parts = []
  for _ in range(3):
    high = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -(1 << 16), jnp.float32)
    parts.append(high.astype(jnp.bfloat16))
    x = x - high
  return parts


def _codes_of_strip(tile):
  """Whose distances fill a quarter of the registers."""
  return 2**14 // tile


def _search_bytes(tile, key_dim, codes):
  width = round_up(key_dim, LANES)
  return 14 * tile * width + 8 * codes * width
