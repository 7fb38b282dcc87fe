"""Bodies of the attention kernels of flash.py: forward, gradient of the queries, gradient of near and of extra keys.

The block that a program keeps lies on sublanes, those that it goes through on lanes. So what belongs to a token that is
passed by comes as a row, and what belongs to the kept block is turned into columns once. Letters: C tokens of a tile, X
extra keys of a tile, K, V and R widths, L = 128 lanes. `refs` are blocks by name: see flash.py.

Registers: 64 of 8 × 128, and a tile of scores alone has as many. So every loop takes a strip of rows, few enough that
what it needs of them stays in registers, and loops hand tiles to one another through scratch: a loop that does a long
product and nothing else may take more rows, and loads what it multiplies them with less often.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.tiles import LANES, MASKED, dot, slide, slide_back, write_columns

# Rows of a query's place; a near key has SHOWN for LOW, an extra key BIAS for INDEX. What the backward pass knows.
INDEX, ID, LOW = 0, 1, 2
SHOWN, BIAS = LOW, INDEX
LSE, SHIFT = 0, 1
# Rows of a strip, by what is done with them: the softmax and what needs as much, gradients of scores and long products,
# sliding.
_STRIP, _LONG_STRIP, _SLIDE_STRIP, _SLIDE_BACK_STRIP = 64, 128, 64, 32
# Most numbers of a value in one product: over them, and of its result.
_SUM_WIDTH, _RESULT_WIDTH = 512, 256


def forward(first, count, refs, *, extras):
  """out [C, V] and lse [1, C] of one block of queries, fp32."""
  step, num_near = pl.program_id(3), count[pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)]

  @pl.when(step == 0)
  def _():
    write_columns(refs["place"], refs["query"][...])
    refs["top"][...] = jnp.full(refs["top"].shape, MASKED, jnp.float32)
    refs["total"][...] = jnp.zeros(refs["total"].shape, jnp.float32)
    refs["sum"][...] = jnp.zeros(refs["sum"].shape, jnp.float32)

  if extras:
    @pl.when(step < extras)
    def _():
      _read(refs, _extra_scores, refs["extra_value"])

  @pl.when((step >= extras) & (step - extras < num_near))
  def _():
    _score_positions(refs)
    _read(refs, _near_scores, refs["v"])

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    def divide(rows):
      total = refs["total"][rows]
      safe = jnp.where(total > 0, total, 1.0)
      refs["top"][rows] = jnp.where(total > 0, refs["top"][rows] + jnp.log(safe), MASKED)
      for part in _parts(refs["sum"], _RESULT_WIDTH):
        refs["out"][rows, part] = refs["sum"][rows, part] / _wide(safe, part.size)

    _by_strips(refs["sum"], divide)
    refs["lse"][...] = refs["top"][...].T[:1]


def _read(refs, scores, value):
  """One step of the online softmax."""
  width = value.shape[0]

  def weigh(rows):
    score, is_seen = scores(refs, rows)
    score = jnp.where(is_seen, score, MASKED)
    before = refs["top"][rows]
    top = jnp.maximum(before, score.max(-1, keepdims=True))
    weight = jnp.where(is_seen, jnp.exp(score - _wide(top, width)), 0.0)
    refs["shrink"][rows] = shrink = jnp.exp(before - top)
    refs["top"][rows] = top
    refs["total"][rows] = refs["total"][rows] * shrink + weight.sum(-1, keepdims=True)
    refs["weight"][rows, :width] = weight.astype(value.dtype)

  def add(rows):
    weight, shrink = refs["weight"][rows, :width], refs["shrink"][rows]
    for part in _parts(value, _RESULT_WIDTH):
      refs["sum"][rows, part] = refs["sum"][rows, part] * _wide(shrink, part.size) + dot(weight, value[:, part], 1, 0)

  _by_strips(refs["sum"], weigh)
  _by_strips(refs["sum"], add, _LONG_STRIP)


def query_gradients(first, count, refs, *, extras):
  """d_q [C, K] of one block of queries; d_qw [C, R]; d_table [blocks, 2C, R] summed over all blocks of a head."""
  block, step = pl.program_id(2), pl.program_id(3)
  here = pl.program_id(0) * pl.num_programs(2) + block
  has_table = "table" in refs

  @pl.when(step == 0)
  def _():
    write_columns(refs["place"], refs["query"][...])
    write_columns(refs["known"], refs["stats"][...])
    refs["sum_q"][...] = jnp.zeros(refs["sum_q"].shape, jnp.float32)
    if has_table:
      refs["sum_qw"][...] = jnp.zeros(refs["sum_qw"].shape, jnp.float32)

  if has_table:
    @pl.when((step == 0) & (block == 0))
    def _():
      refs["d_table"][...] = jnp.zeros(refs["d_table"].shape, jnp.float32)

  def step_of(rows, scores, key):
    score, is_seen = scores
    lse, shift = (_wide(refs["known"][r, rows], score.shape[1]) for r in (LSE, SHIFT))
    weight = jnp.where(is_seen, jnp.exp(score - lse), 0.0)
    d_score = weight * (refs["d_weight"][rows, :score.shape[1]] + shift)
    refs["sum_q"][rows] += dot(d_score.astype(key.dtype), key[...], 1, 0)
    return d_score

  if extras:
    @pl.when(step < extras)
    def _():
      _weigh_values(refs, refs["d_out"], refs["extra_value"])
      _by_strips(refs["q"], lambda rows: step_of(rows, _extra_scores(refs, rows), refs["extra_key"]), _LONG_STRIP)

  @pl.when((step >= extras) & (step - extras < count[here]))
  def _():
    _score_positions(refs)

    _weigh_values(refs, refs["d_out"], refs["v"])

    def near(rows):
      d_score = step_of(rows, _near_scores(refs, rows), refs["k"])
      if has_table:
        refs["position"][rows] = d_score

    _by_strips(refs["q"], near, _LONG_STRIP)
    if has_table:
      _table_gradients(refs, first[here] + step - extras - block)

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    refs["d_q"][...] = refs["sum_q"][...].astype(refs["d_q"].dtype)
    if has_table:
      refs["d_qw"][...] = refs["sum_qw"][...].astype(refs["d_qw"].dtype)


def _table_gradients(refs, offset):
  """From gradients of scores, which refs["position"] holds now."""
  def move(rows, _, first):
    d_score = refs["position"][rows]
    empty = jnp.zeros((rows.size, refs["slid"].shape[1] - d_score.shape[1]), d_score.dtype)
    refs["slid"][rows] = slide_back(jnp.concatenate([empty, d_score], axis=1), first).astype(refs["slid"].dtype)

  def gather(rows, window, _):
    slid = refs["slid"][rows]
    refs["sum_qw"][rows] += dot(slid, refs["table"][window], 1, 0)
    refs["d_table"][offset, window] += dot(slid, refs["qw"][rows], 0, 0)

  _by_distance(refs["qw"], move, _SLIDE_BACK_STRIP)
  _by_distance(refs["qw"], gather, LANES)


def near_key_gradients(first, count, refs, *, steps, key_reach):
  """d_k [C, K] and d_v [C, V] of one block of keys, over the query blocks and heads that may see it."""
  step = pl.program_id(3)
  num_blocks = count[pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)]

  @pl.when(step == 0)
  def _():
    _clear(refs, "sum_k", "sum_v")
    write_columns(refs["place"], refs["key"][...])

  @pl.when(jax.lax.rem(step, steps) < num_blocks)
  def _():
    query_row = [refs["query"][r:r + 1] for r in (INDEX, ID, LOW)]
    _score_positions(refs)
    if "table" in refs:
      _flip_positions(refs)

    def score_strip(rows):
      key_columns = [_wide(refs["place"][r, rows], query_row[0].shape[1]) for r in (INDEX, ID, SHOWN)]
      score = dot(refs["k"][rows], refs["q"][...], 1, 1)
      if "table" in refs:
        score += refs["flipped"][rows]
      is_near = None if key_reach is None else key_columns[INDEX] >= query_row[INDEX] - key_reach
      return score, sees(*query_row, *key_columns), is_near

    _add_key_gradients(refs, score_strip)

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    refs["d_k"][...] = refs["sum_k"][...].astype(refs["d_k"].dtype)
    refs["d_v"][...] = refs["sum_v"][...].astype(refs["d_v"].dtype)


def extra_key_gradients(refs, *, is_shared):
  """d_extra_value [X, V] of a tile and block, over heads; d_extra_key [X, K] over blocks too if they share keys."""
  block, head = pl.program_id(3), pl.program_id(4)
  is_first, is_last = head == 0, head == pl.num_programs(4) - 1

  @pl.when(is_first)
  def _():
    _clear(refs, "sum_v")
    write_columns(refs["place"], refs["extra_place"][...])

  @pl.when(is_first & (block == 0) if is_shared else is_first)
  def _():
    _clear(refs, "sum_k")

  def score_strip(rows):
    bias, document = (_wide(refs["place"][r, rows], refs["q"].shape[0]) for r in (BIAS, ID))
    score = dot(refs["k"][rows], refs["q"][...], 1, 1) + _bias(bias)
    return score, refs["query"][ID:ID + 1] == document, None

  _add_key_gradients(refs, score_strip)

  @pl.when(is_last)
  def _():
    refs["d_v"][...] = refs["sum_v"][...].astype(refs["d_v"].dtype)

  @pl.when(is_last & (block == pl.num_programs(3) - 1) if is_shared else is_last)
  def _():
    refs["d_k"][...] = refs["sum_k"][...].astype(refs["d_k"].dtype)


def _clear(refs, *names):
  for name in names:
    refs[name][...] = jnp.zeros(refs[name].shape, refs[name].dtype)


def _add_key_gradients(refs, score_strip):
  """d_k and d_v of scores, keys × queries here; score_strip(rows) gives (score, is_seen, is_near or None)."""
  q, d_out, stats = refs["q"], refs["d_out"], refs["stats"]

  def strip(rows):
    score, is_seen, is_near = score_strip(rows)
    weight = jnp.where(is_seen, jnp.exp(score - stats[LSE:LSE + 1]), 0.0)
    refs["weight"][rows] = weight.astype(refs["weight"].dtype)
    d_score = weight * (refs["d_weight"][rows] + stats[SHIFT:SHIFT + 1])
    if is_near is not None:
      d_score = jnp.where(is_near, d_score, 0.0)
    refs["sum_k"][rows] += dot(d_score.astype(q.dtype), q[...], 1, 0)

  _weigh_values(refs, refs["v"], d_out)
  _by_strips(refs["k"], strip, _STRIP if "table" in refs else _LONG_STRIP)
  for part in _parts(d_out, _RESULT_WIDTH):
    refs["sum_v"][:, part] += dot(refs["weight"][...], d_out[:, part], 1, 0)


def _weigh_values(refs, kept, passed):
  """Gradients of weights: products over the numbers of a value, some at a time."""
  for part in _parts(kept, _SUM_WIDTH):
    def strip(rows, part=part):
      here = rows, pl.ds(0, passed.shape[0])
      product = dot(kept[rows, part], passed[:, part], 1, 1)
      refs["d_weight"][here] = product if part.start == 0 else refs["d_weight"][here] + product

    _by_strips(kept, strip, _LONG_STRIP)


def _score_positions(refs):
  """Writes products of queries with the row of the table that belongs to their distance from each key, if any."""
  if "table" in refs:
    def score(rows, window, first):
      product = dot(refs["qw"][rows], refs["table"][window], 1, 1)
      refs["position"][rows] = slide(product, refs["position"].shape[1], first)

    _by_distance(refs["qw"], score, _SLIDE_STRIP)


def _flip_positions(refs):
  """Keys × queries, as many keys at a time as there are lanes."""
  position, flipped = refs["position"], refs["flipped"]
  for first in range(0, position.shape[1], LANES):
    keys = pl.ds(first, min(LANES, position.shape[1]))
    flipped[keys] = position[:, keys].T


def _near_scores(refs, rows):
  place, key = refs["place"], refs["key"]
  score = dot(refs["q"][rows], refs["k"][...], 1, 1)
  if "table" in refs:
    score += refs["position"][rows]
  query_columns = (_wide(place[r, rows], score.shape[1]) for r in (INDEX, ID, LOW))
  return score, sees(*query_columns, *(key[r:r + 1] for r in (INDEX, ID, SHOWN)))


def _extra_scores(refs, rows):
  extra = refs["extra_place"]
  score = dot(refs["q"][rows], refs["extra_key"][...], 1, 1) + _bias(extra[BIAS:BIAS + 1])
  return score, _wide(refs["place"][ID, rows], score.shape[1]) == extra[ID:ID + 1]


def _wide(column_RL, width):
  """What is the same in every lane, in as many."""
  return jnp.concatenate([column_RL] * -(-width // LANES), axis=1)[:, :width]


def _by_strips(ref, body, most=_STRIP):
  """Calls body(rows) for all rows of ref, few at a time."""
  size = min(most, ref.shape[0])

  def strip(i, _):
    body(pl.ds(pl.multiple_of(i * size, size), size))
    return 0

  jax.lax.fori_loop(0, ref.shape[0] // size, strip, 0)


def _by_distance(ref, body, most):
  """Calls body(rows, window, first) for all rows of ref, few at a time.

  Rows are cut into groups of L, whose distances from all keys are C + L rows of the table, `window`: the strip's row a
  meets key x at row L + x − first − a of it.
  """
  tile = ref.shape[0]
  group = min(LANES, tile)
  size = min(most, group)
  for first in range(0, group, size):
    def strip(i, _, first=first):
      begin = pl.multiple_of(i * group, group)
      rows = pl.ds(pl.multiple_of(begin + first, size), size)
      body(rows, pl.ds(pl.multiple_of(tile - group - begin, group), tile + group), first)
      return 0

    jax.lax.fori_loop(0, tile // group, strip, 0)


def _parts(ref, most):
  width = ref.shape[1]
  return [pl.ds(first, min(most, width - first)) for first in range(0, width, most)]


def _bias(bits):
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def sees(query_index, query_id, query_low, key_index, key_id, key_shown):
  """Whether a query sees a near key."""
  return (key_index <= query_index) & (key_shown >= query_low) & (key_id == query_id)
