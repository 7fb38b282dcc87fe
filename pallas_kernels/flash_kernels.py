"""Bodies of the attention kernels of flash.py: forward, gradient of the queries, gradient of near and of extra keys.

The block that a program keeps lies on sublanes, those that it goes through on lanes. So what belongs to a token that is
passed by comes as a row, and what belongs to the kept block is turned into columns once. Letters: C tokens of a tile, X
extra keys of a tile, K, V and R widths. `refs` are blocks by name: see flash.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.tiles import MASKED, columns, dot, row, slide

# Rows of a query's place; a near key has SHOWN for LOW, an extra key BIAS for INDEX. What the backward pass knows.
INDEX, ID, LOW = 0, 1, 2
SHOWN, BIAS = LOW, INDEX
LSE, SHIFT = 0, 1


def forward(first, count, refs, *, extras):
  """out [C, V] and lse [1, C] of one block of queries, fp32."""
  step, num_near = pl.program_id(3), count[pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)]

  @pl.when(step == 0)
  def _():
    refs["place"][...] = columns(refs["query"][...])
    refs["top"][...] = jnp.full(refs["top"].shape, MASKED, jnp.float32)
    refs["total"][...] = jnp.zeros(refs["total"].shape, jnp.float32)
    refs["sum"][...] = jnp.zeros(refs["sum"].shape, jnp.float32)

  if extras:
    @pl.when(step < extras)
    def _():
      _read(refs, *_extra_scores(refs), refs["extra_value"])

  @pl.when((step >= extras) & (step - extras < num_near))
  def _():
    _read(refs, *_near_scores(refs), refs["v"])

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    total = refs["total"][...]
    safe = jnp.where(total > 0, total, 1.0)
    refs["out"][...] = refs["sum"][...] / safe
    refs["lse"][...] = row(jnp.where(total > 0, refs["top"][...] + jnp.log(safe), MASKED))


def _read(refs, score, is_seen, value):
  """One step of the online softmax."""
  score = jnp.where(is_seen, score, MASKED)
  top = jnp.maximum(refs["top"][...], score.max(-1, keepdims=True))
  weight = jnp.where(is_seen, jnp.exp(score - top), 0.0)
  shrink = jnp.exp(refs["top"][...] - top)
  refs["top"][...] = top
  refs["total"][...] = refs["total"][...] * shrink + weight.sum(-1, keepdims=True)
  refs["sum"][...] = refs["sum"][...] * shrink + dot(weight.astype(value.dtype), value[...], 1, 0)


def query_gradients(first, count, refs, *, extras):
  """d_q [C, K] of one block of queries; d_qw [C, R]; d_table [blocks, 2C, R] summed over all blocks of a head."""
  block, step = pl.program_id(2), pl.program_id(3)
  here = pl.program_id(0) * pl.num_programs(2) + block
  has_table = "table" in refs

  @pl.when(step == 0)
  def _():
    refs["place"][...] = columns(refs["query"][...])
    refs["known"][...] = columns(refs["stats"][...])
    refs["sum_q"][...] = jnp.zeros(refs["sum_q"].shape, jnp.float32)
    if has_table:
      refs["sum_qw"][...] = jnp.zeros(refs["sum_qw"].shape, jnp.float32)

  if has_table:
    @pl.when((step == 0) & (block == 0))
    def _():
      refs["d_table"][...] = jnp.zeros(refs["d_table"].shape, jnp.float32)

  def step_of(scores, key, value):
    score, is_seen = scores
    known = refs["known"]
    weight = jnp.where(is_seen, jnp.exp(score - known[:, LSE:LSE + 1]), 0.0)
    d_weight = dot(refs["d_out"][...], value[...], 1, 1)
    d_score = weight * (d_weight + known[:, SHIFT:SHIFT + 1])
    refs["sum_q"][...] += dot(d_score.astype(key.dtype), key[...], 1, 0)
    return d_score

  if extras:
    @pl.when(step < extras)
    def _():
      step_of(_extra_scores(refs), refs["extra_key"], refs["extra_value"])

  @pl.when((step >= extras) & (step - extras < count[here]))
  def _():
    d_score = step_of(_near_scores(refs), refs["k"], refs["v"])
    if has_table:
      _table_gradients(refs, d_score, first[here] + step - extras - block)

  @pl.when(step == pl.num_programs(3) - 1)
  def _():
    refs["d_q"][...] = refs["sum_q"][...].astype(refs["d_q"].dtype)
    if has_table:
      refs["d_qw"][...] = refs["sum_qw"][...].astype(refs["d_qw"].dtype)


def _table_gradients(refs, d_score, offset):
  qw, table = refs["qw"], refs["table"]
  d_slid = slide(jnp.concatenate([jnp.zeros_like(d_score), d_score], axis=1), back=True).astype(qw.dtype)
  refs["sum_qw"][...] += dot(d_slid, table[...], 1, 0)
  refs["d_table"][offset] += dot(d_slid, qw[...], 0, 0)


def near_key_gradients(first, count, refs, *, steps, key_reach):
  """d_k [C, K] and d_v [C, V] of one block of keys, over the query blocks and heads that may see it."""
  step = pl.program_id(3)
  num_blocks = count[pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)]

  @pl.when(step == 0)
  def _():
    _clear(refs, "sum_k", "sum_v")
    refs["place"][...] = columns(refs["key"][...])

  @pl.when(jax.lax.rem(step, steps) < num_blocks)
  def _():
    query, place = refs["query"], refs["place"]
    query_row = [query[r:r + 1] for r in (INDEX, ID, LOW)]
    key_columns = [place[:, r:r + 1] for r in (INDEX, ID, SHOWN)]
    score = dot(refs["k"][...], refs["q"][...], 1, 1)
    if "table" in refs:
      score += _position_scores(refs).T
    is_near = None if key_reach is None else key_columns[INDEX] >= query_row[INDEX] - key_reach
    _add_key_gradients(refs, score, _is_seen(*query_row, *key_columns), is_near)

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
    refs["place"][...] = columns(refs["extra_place"][...])

  @pl.when(is_first & (block == 0) if is_shared else is_first)
  def _():
    _clear(refs, "sum_k")

  query, place = refs["query"], refs["place"]
  score = dot(refs["k"][...], refs["q"][...], 1, 1) + _bias(place[:, BIAS:BIAS + 1])
  _add_key_gradients(refs, score, query[ID:ID + 1] == place[:, ID:ID + 1], None)

  @pl.when(is_last)
  def _():
    refs["d_v"][...] = refs["sum_v"][...].astype(refs["d_v"].dtype)

  @pl.when(is_last & (block == pl.num_programs(3) - 1) if is_shared else is_last)
  def _():
    refs["d_k"][...] = refs["sum_k"][...].astype(refs["d_k"].dtype)


def _clear(refs, *names):
  for name in names:
    refs[name][...] = jnp.zeros(refs[name].shape, refs[name].dtype)


def _add_key_gradients(refs, score, is_seen, is_near):
  """Scores are keys × queries here."""
  q, d_out, stats = refs["q"], refs["d_out"], refs["stats"]
  weight = jnp.where(is_seen, jnp.exp(score - stats[LSE:LSE + 1]), 0.0)
  refs["sum_v"][...] += dot(weight.astype(d_out.dtype), d_out[...], 1, 0)
  d_score = weight * (dot(refs["v"][...], d_out[...], 1, 1) + stats[SHIFT:SHIFT + 1])
  if is_near is not None:
    d_score = jnp.where(is_near, d_score, 0.0)
  refs["sum_k"][...] += dot(d_score.astype(q.dtype), q[...], 1, 0)


def _near_scores(refs):
  place, key = refs["place"], refs["key"]
  score = dot(refs["q"][...], refs["k"][...], 1, 1)
  if "table" in refs:
    score += _position_scores(refs)
  query_columns = (place[:, r:r + 1] for r in (INDEX, ID, LOW))
  return score, _is_seen(*query_columns, *(key[r:r + 1] for r in (INDEX, ID, SHOWN)))


def _position_scores(refs):
  """[C, C] products of queries with the row of the table that belongs to their distance from each key."""
  return slide(dot(refs["qw"][...], refs["table"][...], 1, 1))[:, refs["qw"].shape[0]:]


def _extra_scores(refs):
  place, extra = refs["place"], refs["extra_place"]
  score = dot(refs["q"][...], refs["extra_key"][...], 1, 1) + _bias(extra[BIAS:BIAS + 1])
  return score, place[:, ID:ID + 1] == extra[ID:ID + 1]


def _bias(bits):
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _is_seen(query_index, query_id, query_low, key_index, key_id, key_shown):
  return (key_index <= query_index) & (key_shown >= query_low) & (key_id == query_id)
