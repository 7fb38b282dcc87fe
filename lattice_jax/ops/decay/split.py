"""Memories of one matrix a head over tokens that lie on several devices (`lattice_jax.ops.sequence`).

What a shard does to the matrix S is affine, S ← A S + B, and two shards one after another do the same with other A and
B. Each shard finds its own A and B, learns in a prefix scan what all before it make of the first state, and reads its
tokens from there. All shards work at the same time, on the tokens twice, and exchange matrices alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.ops.decay.matrix import MatrixState
from lattice_jax.ops.decay.tokens import encode_documents
from lattice_jax.ops.sequence import (
  AXIS,
  documents_between,
  num_shards,
  prefix_scan,
  relay_call,
  split_tokens,
  take_from,
)

# (q, k, v, …, decay, state, ids, valid) → output, next state
MatrixOp = Callable[..., tuple[jax.Array, MatrixState]]


def split_matrix_op(
  op: MatrixOp, tokens: tuple[jax.Array | None, ...], state: MatrixState, ids: jax.Array, valid: jax.Array, *,
  only_decays: bool = False, start: jax.Array | None = None,
) -> tuple[jax.Array, MatrixState, dict[str, Any]]:
  """Output, next state and no sums of op(*tokens, state, ids, valid).

  Args:
    tokens: q, k, v, …, decay.
    only_decays: whether A is the product of the decays, and not whatever the op makes of a state without values.
    start: with what documents begin; shards then wait for one another's matrix.
  """
  if start is not None:
    return relay_call(functools.partial(_begin_with, op, len(tokens)), tokens, state, ids, valid, (start,))
  if num_shards(ids.shape[1]) == 1:
    return *op(*tokens, state, ids, valid), {}
  body = functools.partial(_read_twice, op, only_decays)
  return split_tokens(body, (), (*tokens, ids, valid), state)


def _begin_with(op: MatrixOp, num_tokens: int, *arrays: Any) -> tuple[jax.Array, MatrixState]:
  start = arrays[num_tokens]
  return op(*arrays[:num_tokens], *arrays[num_tokens + 1:], start=start)


def _read_twice(
  op: MatrixOp, only_decays: bool, shard: jax.Array, constants: Any, tokens: Any, state: MatrixState) -> Any:
  *arrays, ids, valid = tokens
  document_SB = documents_between(ids, valid, state.document_B)
  before_B = document_SB[shard]
  affine = _affine_decay if only_decays else _affine
  own = affine(op, arrays, state, before_B, ids, valid)
  first = jnp.zeros_like(own[0]), state.memory_BHKV
  (_, before_BHKV), (_, after_BHKV) = prefix_scan(
    functools.partial(_then, only_decays), shard, first, own)
  out_BTHV, _ = op(*arrays, MatrixState(before_BHKV, before_B), ids, valid)
  shards = jax.lax.axis_size(AXIS)
  return out_BTHV, MatrixState(take_from(shards - 1, shard, after_BHKV), document_SB[-1]), {}


def _then(only_decays: bool, earlier: tuple[jax.Array, jax.Array], later: tuple[jax.Array, jax.Array]) -> Any:
  """A and B of two shards, one after the other."""
  kept_BHKK, added_BHKV = later
  if only_decays:
    return kept_BHKK * earlier[0], kept_BHKK * earlier[1] + added_BHKV
  both = [jnp.einsum("BHKJ,BHJV->BHKV", kept_BHKK, x_BHKV, precision="highest") for x_BHKV in earlier]
  return both[0], both[1] + added_BHKV


def _affine(op, arrays, state, before_B, ids, valid) -> tuple[jax.Array, jax.Array]:
  """A and B: what becomes of the identity where nothing is added, beside what becomes of nothing."""
  q, k, v, *others = arrays
  zeros_BHKV = jnp.zeros_like(state.memory_BHKV)
  identity_BHKK = jnp.broadcast_to(
    jnp.eye(zeros_BHKV.shape[2], dtype=zeros_BHKV.dtype), (*zeros_BHKV.shape[:3], zeros_BHKV.shape[2]))
  v = jnp.concatenate([v, jnp.zeros((*v.shape[:3], zeros_BHKV.shape[2]), v.dtype)], -1)
  both = MatrixState(jnp.concatenate([zeros_BHKV, identity_BHKK], -1), before_B)
  _, after = op(q, k, v, *others, both, ids, valid)
  added_BHKV, kept_BHKK = jnp.split(after.memory_BHKV, [zeros_BHKV.shape[3]], -1)
  return kept_BHKK, added_BHKV


def _affine_decay(op, arrays, state, before_B, ids, valid) -> tuple[jax.Array, jax.Array]:
  """The factor of every row of the matrix, [B, H, K or 1, 1], and B."""
  decay_BTHK, *_ = encode_documents(tuple(arrays[:1]), arrays[-1], ids, valid, before_B)
  _, after = op(*arrays, MatrixState(jnp.zeros_like(state.memory_BHKV), before_B), ids, valid)
  return decay_BTHK.astype(state.memory_BHKV.dtype).prod(1)[..., None], after.memory_BHKV

