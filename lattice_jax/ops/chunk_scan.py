"""A scan over chunks whose backward pass keeps one state per chunk and recomputes the chunk from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.types import MEMORY_BOUNDARY


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_chunks(one_chunk: Callable[..., tuple[Any, Any]], tokens_N: Any, flags_N: Any, start: Any, carry: Any) -> Any:
  """(outputs of all chunks, carry after the last) of `one_chunk(tokens, flags, start, carry) → (output, carry)`.

  flags: whole numbers and bools, without gradient. start: what every chunk reads.
  """
  return _forward(one_chunk, tokens_N, flags_N, start, carry)[0]


def _forward(one_chunk, tokens_N, flags_N, start, carry):
  def advance(carry, xs):
    tokens, flags = xs
    out, after = one_chunk(as_floats(tokens, tokens_N), flags, start, carry)
    return after, (out, carry)

  last, (out_N, boundary_N) = jax.lax.scan(advance, carry, (as_bits(tokens_N), flags_N))
  # Results are kept too: whatever reads them would otherwise run the chunks again for them.
  out_N, boundary_N, last = checkpoint_name((out_N, boundary_N, last), MEMORY_BOUNDARY)
  return (out_N, last), (tokens_N, flags_N, start, boundary_N)


def _backward(one_chunk, saved, cotangents):
  tokens_N, flags_N, start, boundary_N = saved
  d_out_N, d_last = cotangents

  def go_back(carry, xs):
    d_after, d_start = carry
    tokens, flags, before, d_out = xs
    tokens = as_floats(tokens, tokens_N)
    pull = jax.vjp(lambda tokens, start, carry: one_chunk(tokens, flags, start, carry), tokens, start, before)[1]
    d_tokens, d_start_here, d_before = pull((d_out, d_after))
    return (d_before, jax.tree.map(jnp.add, d_start, d_start_here)), as_bits(d_tokens)

  zero = jax.tree.map(jnp.zeros_like, start)
  (d_carry, d_start), d_tokens_N = jax.lax.scan(
    go_back, (d_last, zero), (as_bits(tokens_N), flags_N, boundary_N, d_out_N), reverse=True)
  return as_floats(d_tokens_N, tokens_N), None, d_start, d_carry


scan_chunks.defvjp(_forward, _backward)


def as_bits(tree: Any) -> Any:
  """Arrays for a loop to go over, bf16 as whole numbers.

  XLA's CPU backend has no bf16: of what a loop reads or writes piece by piece, it would convert all in every round.
  """
  return jax.tree.map(
    lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x, tree)


def as_floats(bits: Any, like: Any) -> Any:
  """Undoes `as_bits`; like: arrays of the dtypes that were."""
  return jax.tree.map(
    lambda x, like: jax.lax.bitcast_convert_type(x, like.dtype) if like.dtype == jnp.bfloat16 else x, bits, like)
