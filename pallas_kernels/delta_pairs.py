"""Pairs of tokens of a chunk in TPU kernels of the delta rule: what is left of a key when a later token looks for it.

`scores` [2·C, C] are products of queries, and below them of keys, with what is left of keys; those of a token with
itself and with later ones are zero here. Where the decay is one number a token, that is one product of matrices times
a table of decays; with one a channel it is a product for each size of blocks (delta_decay.py), masked: a small product
would leave as much of the matrix unit idle. So the two are apart, and all else of a chunk is the same.

Programs are generators that yield between steps, see `delta_tpu`.

`levels` [sizes of blocks + 1, 2, C, D] in scratch holds `before` and `after` of every size, the last being the chunk's.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pallas_kernels.delta_decay import across, blocks, join, join_adjoint
from pallas_kernels.tiles import LANES, SUBLANES, dot_fp32

Refs = dict[str, jax.Ref]
Steps = Iterator[None]


def fill_levels(levels_ref: jax.Ref, decay_CD: jax.Array) -> None:
  """Writes shares of all sizes of blocks."""
  before, after = decay_CD, jnp.ones_like(decay_CD)
  for level, block in enumerate(blocks(decay_CD.shape[0])):
    levels_ref[level, 0], levels_ref[level, 1] = before, after
    before, after = join(before, after, block)
  last = levels_ref.shape[0] - 1
  levels_ref[last, 0], levels_ref[last, 1] = before, after


def whole(refs: Refs) -> int:
  """The level of the whole chunk."""
  return refs["levels"].shape[0] - 1


def stack(refs: Refs, before_CD: jax.Array | float) -> None:
  """Writes queries and below them keys, times `before`, to refs["stack"]."""
  chunk = refs["k"].shape[0]
  refs["stack"][rows_of(0, chunk)] = refs["q"][...].astype(jnp.float32) * before_CD
  refs["stack"][rows_of(1, chunk)] = refs["k"][...].astype(jnp.float32) * before_CD


def scores_by_channel(refs: Refs) -> Steps:
  """Writes refs["scores"]."""
  scores_ref, levels_ref = refs["scores"], refs["levels"]
  scores_ref[...] = jnp.zeros_like(scores_ref)
  for level, block in enumerate(blocks(refs["k"].shape[0])):
    stack(refs, levels_ref[level, 0])
    yield
    key_CK = refs["k"][...].astype(jnp.float32) * levels_ref[level, 1]
    scores_ref[...] += jnp.where(
      across(block, scores_ref.shape), dot_fp32(refs["stack"][...], key_CK, 1, 1), 0.0)
    yield


def adjoint_by_channel(refs: Refs) -> Steps:
  """From refs["d_scores"], adds to refs["d_tokens"] (of q, below it of k), and turns refs["d_shares"].

  refs["d_shares"] holds cotangents of the chunk's own `before` and `after`; then, as the first, those of decays.
  """
  chunk, here_ref, d_shares_ref, levels_ref = refs["k"].shape[0], refs["here"], refs["d_shares"], refs["levels"]
  first, second = rows_of(0, chunk), rows_of(1, chunk)
  for level, block in reversed(list(enumerate(blocks(chunk)))):
    _go_back(refs, level, block)
    stack(refs, levels_ref[level, 0])
    here_ref[...] = jnp.where(across(block, here_ref.shape), refs["d_scores"][...], 0.0)
    yield
    key_CK = refs["k"][...].astype(jnp.float32) * levels_ref[level, 1]
    refs["d_stack"][...] = dot_fp32(here_ref[...], key_CK, 1, 0)
    yield
    d_key_CK = dot_fp32(here_ref[...], refs["stack"][...], 0, 0)
    refs["d_tokens"][second] += d_key_CK * levels_ref[level, 1]
    d_shares_ref[1] += d_key_CK * refs["k"][...].astype(jnp.float32)
    yield
    refs["d_tokens"][first] += refs["d_stack"][first] * levels_ref[level, 0]
    refs["d_tokens"][second] += refs["d_stack"][second] * levels_ref[level, 0]
    d_shares_ref[0] += (
      refs["d_stack"][first] * refs["q"][...].astype(jnp.float32)
      + refs["d_stack"][second] * refs["k"][...].astype(jnp.float32))
    yield


def _go_back(refs, level, block):
  """From the cotangents of what `join` gave for blocks of this size, all but those of its use in scores."""
  d_shares_ref, levels_ref = refs["d_shares"], refs["levels"]
  d_shares_ref[0], d_shares_ref[1] = join_adjoint(
    levels_ref[level, 0], levels_ref[level, 1], block, d_shares_ref[0], d_shares_ref[1])


def scores_by_head(refs: Refs) -> Steps:
  """Writes refs["scores"], refs["products"], which are without decays, and refs["between"], which is decays alone."""
  chunk, levels_ref, between_ref = refs["k"].shape[0], refs["levels"], refs["between"]
  for row, name in enumerate(("q", "k")):
    refs["products"][rows_of(row, chunk)] = token_products(refs[name], refs["k"])
    yield
  refs["after"][...] = to_rows([levels_ref[level, 1] for level, _ in enumerate(blocks(chunk))])[:, :chunk]
  between_ref[...] = jnp.zeros_like(between_ref)
  yield
  for level, block in enumerate(blocks(chunk)):
    between_ref[...] += jnp.where(
      across(block, between_ref.shape), levels_ref[level, 0] * refs["after"][level:level + 1], 0.0)
  yield
  for row in range(2):
    rows = rows_of(row, chunk)
    refs["scores"][rows] = refs["products"][rows] * between_ref[...]
  yield


def adjoint_by_head(refs: Refs) -> Steps:
  """As `adjoint_by_channel`; leaves refs["d_scores"] changed."""
  chunk, d_scores_ref, between_ref = refs["k"].shape[0], refs["d_scores"], refs["between"]
  levels_ref, d_shares_ref, d_between_ref = refs["levels"], refs["d_shares"], refs["d_between"]
  first, second = rows_of(0, chunk), rows_of(1, chunk)
  d_between_ref[...] = (
    d_scores_ref[first] * refs["products"][first] + d_scores_ref[second] * refs["products"][second])
  for rows in (first, second):
    d_scores_ref[rows] *= between_ref[...]
  stack(refs, 1.0)
  yield
  refs["d_tokens"][...] += dot_fp32(d_scores_ref[...], refs["stack"][second], 1, 0)
  yield
  refs["d_tokens"][second] += dot_fp32(d_scores_ref[...], refs["stack"][...], 0, 0)
  yield
  # lines beyond the number of levels are turned into columns that nobody reads
  refs["d_lines"][...] = jnp.zeros_like(refs["d_lines"])
  for level, block in enumerate(blocks(chunk)):
    here_CC = jnp.where(across(block, between_ref.shape), d_between_ref[...], 0.0)
    refs["d_lines"][level:level + 1, :chunk] = jnp.sum(here_CC * levels_ref[level, 0], 0, keepdims=True)
  yield
  refs["d_after"][...] = to_columns(refs["d_lines"][...])[:chunk]
  yield
  for level, block in reversed(list(enumerate(blocks(chunk)))):
    _go_back(refs, level, block)
    yield
    here_CC = jnp.where(across(block, between_ref.shape), d_between_ref[...], 0.0)
    d_shares_ref[0] += jnp.sum(here_CC * refs["after"][level:level + 1], 1, keepdims=True)
    d_shares_ref[1] += refs["d_after"][:, level:level + 1]
    yield


def token_products(a_ref: jax.Ref, b_ref: jax.Ref) -> jax.Array:
  """a · bᵀ; products of two bf16 numbers are exact in fp32, and take one pass of the matrix unit for six."""
  if a_ref.dtype == b_ref.dtype == jnp.bfloat16:
    return jax.lax.dot_general(
      a_ref[...], b_ref[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
  return dot_fp32(a_ref[...].astype(jnp.float32), b_ref[...].astype(jnp.float32), 1, 1)


def rows_of(part: int, chunk: int) -> slice:
  """Rows of what is stacked: queries are part 0, keys part 1."""
  return slice(part * chunk, (part + 1) * chunk)


def to_rows(columns_C1: list[jax.Array]) -> jax.Array:
  """[8, 128] of at most eight columns [C, 1], in the first lanes; all else is zero."""
  chunk = columns_C1[0].shape[0]
  lane_CL = jax.lax.broadcasted_iota(jnp.int32, (chunk, LANES), 1)
  table_CL = jnp.zeros((chunk, LANES), jnp.float32)
  for number, column_C1 in enumerate(columns_C1):
    table_CL = jnp.where(lane_CL == number, column_C1, table_CL)
  if chunk < LANES:
    table_CL = jnp.concatenate([table_CL, jnp.zeros((LANES - chunk, LANES), jnp.float32)])
  return table_CL.T[:SUBLANES]


def to_columns(lines: jax.Array) -> jax.Array:
  """[128, 128] of eight lines [8, 128], over and over."""
  return jnp.concatenate([lines] * (LANES // SUBLANES)).T
