"""Bodies of the attention kernels of flash_hopper.py: forward, gradient of the queries, gradient of the keys.

`refs` are arrays, and room in shared memory, by name: see flash_hopper.py. A tile is `ROWS` tokens, one warpgroup's.
Scores are kept in base 2, so that a weight is one `exp2`. What is hidden scores twice as low as anything that a query
has before it sees a key, so that its weight is exactly zero without another test.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import hopper
from pallas_kernels.flash_kernels import BIAS, ID, INDEX, LOW, LSE, SHIFT, SHOWN, sees
from pallas_kernels.hopper import COLUMN, MATRIX, ROW, ROWS, WARPGROUP, by_column, by_row, load
from pallas_kernels.tiles import MASKED

PLACES = 3  # of the ring
COMPUTING = 2  # warpgroups, and so tiles of a block
NUM_PLACE, NUM_KNOWN = 3, 2  # rows of a place and of what the backward pass knows
LOG2E = math.log2(math.e)
HIDDEN = 2 * MASKED


def forward(refs, *, group, scale, extras):
  """out [ROWS, V] and lse [ROWS] of each tile of a block of queries, fp32."""
  batch, head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
  width = refs["v_tile"].shape[-1]

  def begin(_):
    return hopper.zeros(ROWS, width), hopper.row_numbers(MASKED), hopper.row_numbers(0.0)

  def read(score, near, place, carry):
    total_RV, top_R, weight_R = carry
    next_R = jnp.maximum(top_R, score.max(axis=1))
    shrink_R = jnp.exp2(top_R - next_R)
    weight = jnp.exp2(score - by_row(next_R, ROWS))
    weight_R = weight_R * shrink_R + weight.sum(axis=1)
    values = refs["v_tile"].at[place]
    total_RV = hopper.add_product(total_RV * by_row(shrink_R, width), weight.astype(values.dtype), values)
    return total_RV, next_R, weight_R

  def end(tile, carry):
    total_RV, top_R, weight_R = carry
    is_any_R = weight_R > 0
    safe_R = jnp.where(is_any_R, weight_R, 1.0)
    refs["out"][batch, tile, :, head] = total_RV * by_row(1.0 / safe_R, width)
    refs["lse"][batch, head, tile] = jnp.where(is_any_R, top_R / LOG2E + jnp.log(safe_R), MASKED)

  _through_keys(refs, group, scale, extras, ("q",), begin, read, end)


def query_gradients(refs, *, group, scale, extras):
  """d_q [ROWS, K] of each tile of a block of queries, and d_bias [ROWS, ROWS] for each tile of near keys."""
  batch, head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")

  def begin(tile):
    known = (load(refs["stats"], (batch, head, tile, r), ROW) for r in (LSE, SHIFT))
    return hopper.zeros(ROWS, refs["k_tile"].shape[-1]), *known

  def read(score, near, place, carry):
    sum_RK, lse_R, shift_R = carry
    warpgroup = jax.lax.axis_index(WARPGROUP)
    keys = refs["k_tile"].at[place]
    weight = jnp.exp2(score - by_row(lse_R, ROWS))
    d_weight = hopper.product(refs["d_out_tile"].at[warpgroup], refs["v_tile"].at[place])
    d_score = weight * (d_weight + by_row(shift_R, ROWS))
    if near and "bias" in refs:
      _bias_tile(refs["d_bias"], batch, head, *near)[...] = d_score
    return hopper.add_product(sum_RK, d_score.astype(keys.dtype), keys), lse_R, shift_R

  def end(tile, carry):
    target = refs["d_q"].at[batch, tile, :, head]
    hopper.send((carry[0] * scale, refs["q_tile"].at[jax.lax.axis_index(WARPGROUP)], target))

  _through_keys(refs, group, scale, extras, ("q", "d_out"), begin, read, end)


def _through_keys(refs, group, scale, extras, kept, begin, read, end):
  """`end(tile, carry)` after `carry = read(score, near, place, carry)` of all keys, for the tiles of a block.

  near: the tile of queries and which of its near ones a tile of keys is; None of extra keys.
  """
  batch, head, block = (jax.lax.axis_index(name) for name in ("batch", "head", "block"))
  key_head = jax.lax.div(head, group)
  first = refs["first"][batch, block] * COMPUTING
  total = extras + refs["count"][batch, block] * COMPUTING
  fetch = functools.partial(_fetch_keys, refs, (batch, key_head, block), first, extras)

  def compute():
    warpgroup = jax.lax.axis_index(WARPGROUP)
    tile = block * COMPUTING + warpgroup
    ready = refs["ready"].at[warpgroup]
    for name in kept:
      plgpu.copy_gmem_to_smem(refs[name].at[batch, tile, :, head], refs[f"{name}_tile"].at[warpgroup], ready)
    plgpu.barrier_wait(ready)
    query = [load(refs["query"], (batch, tile, r), ROW) for r in (INDEX, ID, LOW)]

    def score_of(place):
      return hopper.product(refs["q_tile"].at[warpgroup], refs["k_tile"].at[place]) * (scale * LOG2E)

    def column(place, r):
      return by_column(load(refs["place"], (place, r), COLUMN))

    def read_extra(_, place, carry):
      bias = jax.lax.bitcast_convert_type(column(place, BIAS), jnp.float32)
      is_seen = column(place, ID) == by_row(query[ID], ROWS)
      return read(jnp.where(is_seen, score_of(place) + bias * LOG2E, HIDDEN), None, place, carry)

    def read_near(step, place, carry):
      near, score = (tile, step - extras), score_of(place)
      if "bias" in refs:
        score = score + _load_bias(refs["bias"], batch, head, *near)
      is_seen = sees(
        *(by_row(x, ROWS) for x in query), *(column(place, r) for r in (INDEX, ID, SHOWN)))
      return read(jnp.where(is_seen, score, HIDDEN), near, place, carry)

    carry = begin(tile)
    if extras:
      carry = hopper.go_through(0, extras, total, PLACES, refs["full"], refs["free"], read_extra, carry)
    carry = hopper.go_through(extras, total, total, PLACES, refs["full"], refs["free"], read_near, carry)
    end(tile, carry)

  hopper.divide_work(COMPUTING, compute, lambda: hopper.feed(total, PLACES, refs["free"], fetch))


def _fetch_keys(refs, place_of_block, first, extras, step, place):
  """Copies a tile of extra keys or, after `extras` of them, one of near keys; `first` is the first of those."""
  batch, key_head, block = place_of_block

  def copy(keys, values, rows):
    for source, target in ((keys, "k_tile"), (values, "v_tile"), (rows, "place")):
      plgpu.copy_gmem_to_smem(source, refs[target].at[place], refs["full"].at[place])

  def extra():
    copy(*(_extra_tile(refs[name], batch, key_head, block, step) for name in ("extra_k", "extra_v", "extra_place")))

  def near():
    tile = first + step - extras
    copy(*(refs[name].at[batch, tile, :, key_head] for name in ("k", "v")), refs["key"].at[batch, tile])

  if not extras:
    near()
    return
  pl.when(step < extras)(extra)
  pl.when(step >= extras)(near)


def near_key_gradients(refs, *, group, scale, key_reach):
  """d_k [ROWS, K] and d_v [ROWS, V] of each tile of a block of keys, over all queries and heads that may see it."""
  batch, key_head, block = (jax.lax.axis_index(name) for name in ("batch", "head", "block"))
  first, count = (refs[name][batch, block] * COMPUTING for name in ("first", "count"))

  def kept(warpgroup):
    tile = block * COMPUTING + warpgroup
    return {name: refs[name].at[batch, tile, :, key_head] for name in ("k", "v", "d_k", "d_v")}

  def see(warpgroup):
    place = (batch, block * COMPUTING + warpgroup)
    key = [load(refs["key"], (*place, r), ROW) for r in (INDEX, ID, SHOWN)]

    def hide(score, query, head, tile):
      if "bias" in refs:
        near = place[1] - jax.lax.div(tile, COMPUTING) * COMPUTING
        score = score + _load_bias(refs["bias"], batch, head, tile, near)
      is_seen = sees(*(query(r) for r in (INDEX, ID, LOW)), *(by_row(x, ROWS) for x in key))
      return jnp.where(is_seen, score, HIDDEN)

    def limit(d_score, query):
      if key_reach is None:
        return d_score
      return jnp.where(by_row(key[INDEX], ROWS) >= query(INDEX) - key_reach, d_score, 0.0)

    return hide, limit

  _through_queries(refs, group, scale, first, count, kept, see)


def extra_key_gradients(refs, *, group, scale, computing):
  """d_extra_key [ROWS, K] and d_extra_value [ROWS, V] of tiles of extra keys, from the one block of queries."""
  batch, key_head, block, extra = (jax.lax.axis_index(name) for name in ("batch", "head", "block", "extra"))

  def kept(warpgroup):
    place = batch, key_head, block, extra * computing + warpgroup
    sources = {"k": "extra_k", "v": "extra_v", "d_k": "d_k", "d_v": "d_v"}
    return {name: _extra_tile(refs[source], *place) for name, source in sources.items()}

  def see(warpgroup):
    place = batch, key_head, block, extra * computing + warpgroup
    bias_R, id_R = (load(refs["extra_place"], (*place, r), ROW) for r in (BIAS, ID))
    bias_R = jax.lax.bitcast_convert_type(bias_R, jnp.float32) * LOG2E

    def hide(score, query, *_):
      return jnp.where(query(ID) == by_row(id_R, ROWS), score + by_row(bias_R, ROWS), HIDDEN)

    return hide, lambda d_score, _: d_score

  _through_queries(refs, group, scale, block * COMPUTING, COMPUTING, kept, see, computing)


def _through_queries(refs, group, scale, first, count, kept, see, computing=COMPUTING):
  """Gradients of the keys in `kept` from `count` tiles of queries on from `first`, of all heads of a group."""
  batch, key_head = jax.lax.axis_index("batch"), jax.lax.axis_index("head")
  total = group * count

  def met(step):
    return key_head * group + jax.lax.div(step, count), first + jax.lax.rem(step, count)

  def fetch(step, place):
    head, tile = met(step)
    for source, target in (
        (refs["q"].at[batch, tile, :, head], "q_tile"), (refs["d_out"].at[batch, tile, :, head], "d_out_tile"),
        (refs["query"].at[batch, tile], "place"), (refs["stats"].at[batch, head, tile], "known")):
      plgpu.copy_gmem_to_smem(source, refs[target].at[place], refs["full"].at[place])

  def compute():
    warpgroup = jax.lax.axis_index(WARPGROUP)
    own, ready = kept(warpgroup), refs["ready"].at[warpgroup]
    keys, values = refs["k_tile"].at[warpgroup], refs["v_tile"].at[warpgroup]
    plgpu.copy_gmem_to_smem(own["k"], keys, ready)
    plgpu.copy_gmem_to_smem(own["v"], values, ready)
    plgpu.barrier_wait(ready)
    hide, limit = see(warpgroup)

    def read(step, place, carry):
      sum_RK, sum_RV = carry
      q, d_out = refs["q_tile"].at[place], refs["d_out_tile"].at[place]

      def query(r):
        return by_column(load(refs["place"], (place, r), COLUMN))

      def known(r):
        return by_column(load(refs["known"], (place, r), COLUMN))

      score = hide(hopper.product(keys, q) * (scale * LOG2E), query, *met(step))
      weight = jnp.exp2(score - known(LSE))
      sum_RV = hopper.add_product(sum_RV, weight.astype(d_out.dtype), d_out)
      d_score = limit(weight * (hopper.product(values, d_out) + known(SHIFT)), query)
      return hopper.add_product(sum_RK, d_score.astype(q.dtype), q), sum_RV

    carry = hopper.zeros(ROWS, keys.shape[-1]), hopper.zeros(ROWS, values.shape[-1])
    sum_RK, sum_RV = hopper.go_through(0, total, total, PLACES, refs["full"], refs["free"], read, carry)
    hopper.send((sum_RK * scale, keys, own["d_k"]), (sum_RV, values, own["d_v"]))

  hopper.divide_work(computing, compute, lambda: hopper.feed(total, PLACES, refs["free"], fetch))


def _extra_tile(ref, batch, head, block, tile):
  """Of an array [B, H, N or 1, tiles, …], whose one block all query blocks share."""
  return ref.at[batch, head, 0 if ref.shape[2] == 1 else block, tile]


def _bias_tile(ref, batch, head, tile, near):
  """Of an array [B, Q, tiles, ROWS, near tiles, ROWS]."""
  return ref.at[batch, head, tile, :, near]


def _load_bias(ref, batch, head, tile, near):
  return load(ref, (batch, head, tile, slice(None), near), MATRIX) * LOG2E
