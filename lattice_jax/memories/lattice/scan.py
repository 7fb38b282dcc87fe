"""The exact token scan with a hand-written adjoint: it keeps one state a chunk and replays the chunk from it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.state import LatticeSlots
from lattice_jax.memories.lattice.step import move, move_adjoint, read, read_adjoint, returning_adjoint
from lattice_jax.memories.lattice.tokens import Tokens, to_chunks
from lattice_jax.ops.chunk_scan import as_bits, as_floats
from lattice_jax.ops.documents import from_chunks, select
from lattice_jax.types import MEMORY_BOUNDARY

_LEAST_CHUNK = 64


def lattice_scan(
  rule: Rule, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> tuple[jax.Array, LatticeSlots]:
  """As `lattice_reference`; keeps about √T states for the backward pass, and makes √T again."""
  length = is_start_BT.shape[1]
  # The power of two below √T, as that mostly divides T and nothing must be filled up.
  chunk = min(length, max(_LEAST_CHUNK, 1 << (length.bit_length() - 1) // 2))
  out_NBCHV, slots = _scan(rule, *to_chunks(tokens, is_start_BT, chunk), start, slots)
  return from_chunks(out_NBCHV, length), slots


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(rule, tokens_NBC, is_start_NBC, start, slots):
  return _forward(rule, tokens_NBC, is_start_NBC, start, slots)[0]


def _forward(rule, tokens_NBC, is_start_NBC, start, slots):
  def one_token(slots, xs):
    token, is_start_B = xs
    slots, _ = move(rule, select(is_start_B, start, slots), token, start)
    return slots, read(slots, token)

  def one_chunk(slots, xs):
    tokens_bits, is_start_BC = xs
    tokens_BC = as_floats(tokens_bits, tokens_NBC)
    after, out_CBHV = jax.lax.scan(one_token, slots, _by_token(tokens_BC, is_start_BC, slots.unit_BHMV.dtype))
    return after, (jnp.moveaxis(out_CBHV, 0, 1), slots)

  last, (out_NBCHV, boundary) = jax.lax.scan(one_chunk, slots, (as_bits(tokens_NBC), is_start_NBC))
  # Results are kept too: whatever reads them would otherwise run the scan again for them.
  out_NBCHV, boundary, last = checkpoint_name((out_NBCHV, boundary, last), MEMORY_BOUNDARY)
  return (out_NBCHV, last), (tokens_NBC, is_start_NBC, start, boundary)


def _backward(rule, saved, cotangents):
  tokens_NBC, is_start_NBC, start, boundary = saved
  d_out_NBCHV, d_last = cotangents

  def replay(slots, xs):
    token, is_start_B = xs
    before = select(is_start_B, start, slots)
    after, moved = move(rule, before, token, start)
    return after, (before, moved)

  def one_token(carry, xs):
    d_after, d_start = carry
    token, is_start_B, before, moved, d_out_BHV = xs
    if rule.state == "returning":
      d_before, d_token, d_back = returning_adjoint(rule, before, token, moved, start, d_after, d_out_BHV)
      d_start = jax.tree.map(jnp.add, d_start, d_back)
    else:
      d_before, d_token = move_adjoint(rule, before, token, moved, d_after, d_out_BHV)
    zero = jax.tree.map(jnp.zeros_like, d_before)
    d_start = jax.tree.map(lambda total, d: total + d.sum(0), d_start, select(is_start_B, d_before, zero))
    return (select(is_start_B, zero, d_before), d_start), d_token

  def one_chunk(carry, xs):
    tokens_bits, is_start_BC, slots, d_out_BCHV = xs
    tokens_BC = as_floats(tokens_bits, tokens_NBC)
    by_token = _by_token(tokens_BC, is_start_BC, slots.unit_BHMV.dtype)
    d_out_CBHV = jnp.moveaxis(d_out_BCHV, 1, 0)
    _, replayed_CB = jax.lax.scan(replay, slots, by_token)
    d_q_CBHM = jax.vmap(read_adjoint, in_axes=(0, 0, None, 0))(*replayed_CB, start, d_out_CBHV)
    carry, d_tokens_CB = jax.lax.scan(one_token, carry, (*by_token, *replayed_CB, d_out_CBHV), reverse=True)
    d_tokens_CB = d_tokens_CB.replace(q_BTHM=d_q_CBHM)
    return carry, as_bits(
      jax.tree.map(lambda d, x: jnp.moveaxis(d, 0, 1).astype(x.dtype), d_tokens_CB, tokens_BC))

  zero = jax.tree.map(jnp.zeros_like, start)
  (d_slots, d_start), d_tokens_NBC = jax.lax.scan(
    one_chunk, (d_last, zero), (as_bits(tokens_NBC), is_start_NBC, boundary, d_out_NBCHV), reverse=True)
  return as_floats(d_tokens_NBC, tokens_NBC), None, d_start, d_slots


_scan.defvjp(_forward, _backward)


def _by_token(tokens_BC: Tokens, is_start_BC: jax.Array, dtype: jnp.dtype) -> tuple[Tokens, jax.Array]:
  """[B, C, …] → [C, B, …] in the state's dtype."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0).astype(dtype), tokens_BC), is_start_BC.T
