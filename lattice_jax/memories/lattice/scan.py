"""The exact token scan with a hand-written adjoint: it keeps one state a chunk and what each token
found, and replays the chunk from them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.memories.lattice.adjoint import lengths_along, pull_back, pull_token
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.state import LatticeSlots
from lattice_jax.memories.lattice.step import find, move, outer, read
from lattice_jax.memories.lattice.tokens import Tokens, to_chunks
from lattice_jax.ops.chunk_scan import as_bits, as_floats
from lattice_jax.ops.documents import from_chunks, select
from lattice_jax.types import MEMORY_BOUNDARY

_LEAST_CHUNK = 64


def lattice_scan(
  rule: Rule, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> tuple[jax.Array, LatticeSlots]:
  """As `lattice_reference`; keeps about √T states and what tokens found for the backward pass, and makes √T again."""
  length = is_start_BT.shape[1]
  # The power of two below √T, as that mostly divides T and nothing must be filled up.
  chunk = min(length, max(_LEAST_CHUNK, 1 << (length.bit_length() - 1) // 2))
  out_NBCHV, slots = _scan(rule, *to_chunks(tokens, is_start_BT, chunk), start, slots)
  return from_chunks(out_NBCHV, length), slots


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(rule, tokens_NBC, is_start_NBC, start, slots):
  return _forward(rule, tokens_NBC, is_start_NBC, start, slots)[0]


def _forward(rule, tokens_NBC, is_start_NBC, start, slots):
  def one_token(before, xs):
    token, is_start_next_B = xs
    found = find(rule, before, token, start)
    out_BHV = read(rule, before, token, start, found)
    before, out_BHV = jax.lax.optimization_barrier((before, out_BHV))
    after, _ = move(rule, before, token, start, found)
    return select(is_start_next_B, start, after), (out_BHV, found)

  def one_chunk(before, xs):
    tokens_bits, is_start_next_BC = xs
    tokens_BC = as_floats(tokens_bits, tokens_NBC)
    after, (out_CBHV, found_CB) = jax.lax.scan(one_token, before, _by_token((tokens_BC, is_start_next_BC), before))
    return after, (jnp.moveaxis(out_CBHV, 0, 1), (before, found_CB))

  # The carry are the slots that the next token finds, so that a document's start is chosen while they are written.
  first = select(is_start_NBC[0, :, 0], start, slots)
  last, (out_NBCHV, kept) = jax.lax.scan(one_chunk, first, (as_bits(tokens_NBC), _of_next(is_start_NBC)))
  # Results are kept too: whatever reads them would otherwise run the scan again for them.
  out_NBCHV, kept, last = checkpoint_name((out_NBCHV, kept, last), MEMORY_BOUNDARY)
  return (out_NBCHV, last), (tokens_NBC, is_start_NBC, start, kept)


def _backward(rule, saved, cotangents):
  tokens_NBC, is_start_NBC, start, kept = saved
  d_out_NBCHV, d_last = cotangents

  def replay(before, xs):
    token, is_start_next_B, found = xs
    after, moved = move(rule, before, token, start, found)
    return select(is_start_next_B, start, after), (before, moved)

  def one_token(carry, xs):
    (X_BHMV, d_norm_BHM), d_start = carry
    token, is_start_B, before, moved, along, (q_BHM, d_out_BHV) = xs
    before = jax.lax.optimization_barrier(before)
    d_before, pull, d_back_BHMV = pull_back(rule, before, token, moved, along, start, X_BHMV, d_norm_BHM)
    zero = jax.tree.map(jnp.zeros_like, d_before)
    d_start = jax.tree.map(lambda total, d: total + d.sum(0), d_start, select(is_start_B, d_before, zero))
    if d_back_BHMV is not None:
      d_start = d_start.replace(unit_BHMV=d_start.unit_BHMV + d_back_BHMV.sum(0))
    d_after = select(is_start_B, zero, d_before)
    return ((d_after.unit_BHMV + outer(q_BHM, d_out_BHV), d_after.norm_BHM), d_start), pull

  def one_chunk(carry, xs):
    d_after, d_start = carry
    tokens_bits, is_start_BC, is_start_next_BC, (before, found_CB), d_out_BCHV = xs
    tokens_BC = as_floats(tokens_bits, tokens_NBC)
    tokens_CB, is_start_CB, is_start_next_CB, d_out_CBHV = _by_token(
      (tokens_BC, is_start_BC, is_start_next_BC, d_out_BCHV), before)
    _, (before_CB, moved_CB) = jax.lax.scan(replay, before, (tokens_CB, is_start_next_CB, found_CB))
    along_CB = jax.vmap(lengths_along, in_axes=(0, 0, None))(before_CB, moved_CB, start)
    # What a token's output asks for is added where the cotangent of the slots before its next one is written.
    reads_CB = tokens_CB.q_BTHM, d_out_CBHV
    X_BHMV = d_after.unit_BHMV + outer(*jax.tree.map(lambda x_CB: x_CB[-1], reads_CB))
    (d_after, d_start), pull_CB = jax.lax.scan(
      one_token, ((X_BHMV, d_after.norm_BHM), d_start),
      (tokens_CB, is_start_CB, before_CB, moved_CB, along_CB, jax.tree.map(_of_previous, reads_CB)), reverse=True)
    d_tokens_CB = jax.vmap(functools.partial(pull_token, rule), in_axes=(0, 0, 0, 0, None, 0))(
      before_CB, tokens_CB, moved_CB, pull_CB, start, d_out_CBHV)
    return (LatticeSlots(*d_after), d_start), as_bits(
      jax.tree.map(lambda d, x: jnp.moveaxis(d, 0, 1).astype(x.dtype), d_tokens_CB, tokens_BC))

  zero = jax.tree.map(jnp.zeros_like, start)
  (d_first, d_start), d_tokens_NBC = jax.lax.scan(
    one_chunk, (d_last, zero), (as_bits(tokens_NBC), is_start_NBC, _of_next(is_start_NBC), kept, d_out_NBCHV),
    reverse=True)
  return as_floats(d_tokens_NBC, tokens_NBC), None, d_start, d_first


_scan.defvjp(_forward, _backward)


def _by_token(tree: Any, slots: LatticeSlots) -> Any:
  """[B, C, …] → [C, B, …], numbers in the slots' dtype."""
  dtype = slots.unit_BHMV.dtype
  return jax.tree.map(
    lambda x: jnp.moveaxis(x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, 1, 0), tree)


def _of_next(is_start_NBC: jax.Array) -> jax.Array:
  """The flag of the token after each; none after the last."""
  next_NB1 = jnp.pad(is_start_NBC[1:, :, :1], ((0, 1), (0, 0), (0, 0)))
  return jnp.concatenate([is_start_NBC[..., 1:], next_NB1], axis=-1)


def _of_previous(x_CB: jax.Array) -> jax.Array:
  """That of the token before each, zero before the first."""
  return jnp.concatenate([jnp.zeros_like(x_CB[:1]), x_CB[:-1]])
