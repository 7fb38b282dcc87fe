"""Tokens of recurrences whose memory decays: documents and padding as decays, one token or one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.ops.chunk_scan import scan_chunks
from lattice_jax.ops.documents import document_starts, from_chunks, keep_only, select, to_chunks

# What a token brings, each [B, T, H, …].
Inputs = tuple[jax.Array, ...]


class Beginning(NamedTuple):
  """With what documents begin, where that is not an empty memory.

  first_BTHK: the decays of their first tokens, zero elsewhere. is_first_BT: which these are. start: the memory that
  they decay, of one row.
  """

  first_BTHK: jax.Array
  is_first_BT: jax.Array
  start: jax.Array


def encode_documents(
  inputs: Inputs, decay: jax.Array | None, ids: jax.Array, valid: jax.Array, document_B: jax.Array,
  start: jax.Array | None = None,
) -> tuple[jax.Array, Inputs, Beginning | None]:
  """Decays [B, T, H, K or 1] and inputs in which documents and padding need no further care.

  The first token of a document has decay zero: nothing of what went before is left, and the memory it writes to is
  empty, or what is left of `start`. An invalid token has decay one and zeros for all else.
  """
  if decay is None:
    decay = jnp.ones((*inputs[0].shape[:3], 1), jnp.float32)
  is_start_BT = document_starts(ids, valid, document_B)
  beginning = None if start is None else Beginning(keep_only(is_start_BT, decay), is_start_BT, start)
  decay = jnp.where(is_start_BT[..., None, None], 0, decay)
  return keep_only(valid, decay, 1), keep_only(valid, inputs), beginning


def by_token(
  step: Callable[[Any, jax.Array, Inputs], tuple[jax.Array, Any]], decay: jax.Array, inputs: Inputs, memory: Any,
  beginning: Beginning | None = None,
) -> tuple[jax.Array, Any]:
  """Outputs [B, T, H, V] and last memory of `step(memory, decay, inputs) → (output, memory)`, which lack the axis T."""
  dtype = jax.tree.leaves(memory)[0].dtype
  is_first_TB = None
  if beginning is not None:
    is_first_TB, decay = beginning.is_first_BT.T, decay + beginning.first_BTHK

  def advance(memory, token):
    is_first_B, decay_BHK, inputs = token
    if beginning is not None:
      memory = select(is_first_B, beginning.start.astype(dtype), memory)
    out_BHV, memory = step(memory, decay_BHK, inputs)
    return memory, out_BHV

  tokens_T = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(dtype), 1, 0), (decay, inputs))
  memory, out_TBHV = jax.lax.scan(advance, memory, (is_first_TB, *tokens_T))
  return jnp.moveaxis(out_TBHV, 0, 1), memory


def by_chunk(
  one_chunk: Callable[..., tuple[jax.Array, Any]], decay: jax.Array, inputs: Inputs, memory: Any, chunk_len: int,
  beginning: Beginning | None = None,
) -> tuple[jax.Array, Any]:
  """As `by_token`, of a function that takes [B, H, C, …]; the backward pass keeps one memory a chunk.

  one_chunk: (memory, decay, inputs) → (outputs, memory); with a beginning it is given what `cumulate` calls so too.
  """
  length, dtype = decay.shape[1], jax.tree.leaves(memory)[0].dtype
  chunk_len = min(length, chunk_len)

  def advance(tokens, flags, start, memory):
    del flags
    decay, inputs, *first = jax.tree.map(lambda x_BC: jnp.moveaxis(x_BC.astype(dtype), 1, 2), tokens)
    out, memory = one_chunk(memory, decay, inputs, *((*first, *start),) * len(start))
    return jnp.moveaxis(out, 1, 2), memory

  tokens_NBC = to_chunks(decay, chunk_len, neutral=1), to_chunks(inputs, chunk_len)
  start = ()
  if beginning is not None:
    tokens_NBC, start = (*tokens_NBC, to_chunks(beginning.first_BTHK, chunk_len)), (beginning.start.astype(dtype),)
  out_NBCHV, memory = scan_chunks(advance, tokens_NBC, (), start, memory)
  return from_chunks(out_NBCHV, length), memory
