"""The tokens of a call as one record, cut into chunks."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

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

  def keep(x_BT, neutral=0):
    return jnp.where(is_valid_BT.reshape(*is_valid_BT.shape, *(1,) * (x_BT.ndim - 2)), x_BT, neutral)

  return jax.tree.map(keep, tokens).replace(forget_BTH=keep(tokens.forget_BTH, 1))


def to_chunks(tokens: Tokens, flags: Any, chunk: int) -> tuple[Tokens, Any]:
  """[B, T, …] → [N, B, C, …], filled up with tokens that change nothing and false flags."""

  def cut(x_BT, neutral=0):
    return documents.to_chunks(x_BT, chunk, neutral)

  return jax.tree.map(cut, tokens).replace(forget_BTH=cut(tokens.forget_BTH, 1)), jax.tree.map(cut, flags)
