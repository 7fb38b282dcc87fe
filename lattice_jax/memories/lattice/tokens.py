"""The tokens of a call as one record, cut into chunks."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

from lattice_jax.ops import documents


@flax.struct.dataclass
class Tokens:
  """Queries, keys (codes over the slots), values, step size and forget gate of every token.

  A token with key 0, step 0 and forget gate 1 changes nothing: so are invalid ones, and those that fill up a chunk.
  """

  q_BTHM: jax.Array
  k_BTHM: jax.Array
  v_BTHV: jax.Array
  step_BTH: jax.Array
  forget_BTH: jax.Array


def mask(tokens: Tokens, is_valid_BT: jax.Array) -> Tokens:
  """Invalid tokens replaced by those that change nothing."""
  forget_BTH = documents.keep_only(is_valid_BT, tokens.forget_BTH, 1)
  return documents.keep_only(is_valid_BT, tokens).replace(forget_BTH=forget_BTH)


def to_chunks(tokens: Tokens, flags: Any, chunk: int) -> tuple[Tokens, Any]:
  """[B, T, …] → [N, B, C, …], filled up with tokens that change nothing and false flags."""
  forget_NBCH = documents.to_chunks(tokens.forget_BTH, chunk, 1)
  return documents.to_chunks(tokens, chunk).replace(forget_BTH=forget_NBCH), documents.to_chunks(flags, chunk)
