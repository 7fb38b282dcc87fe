"""The tokens of a call as one record, cut into chunks."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


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
  padding = -tokens.step_BTH.shape[1] % chunk

  def cut(x_BT, neutral=0):
    if padding:
      pads = ((0, 0), (0, padding), *((0, 0),) * (x_BT.ndim - 2))
      x_BT = jnp.pad(x_BT, pads, constant_values=neutral)
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:]), 1, 0)

  return jax.tree.map(cut, tokens).replace(forget_BTH=cut(tokens.forget_BTH, 1)), jax.tree.map(cut, flags)


def from_chunks(x_NBC: jax.Array, length: int) -> jax.Array:
  """[N, B, C, …] → [B, T, …]."""
  x_BNC = jnp.moveaxis(x_NBC, 0, 1)
  return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])[:, :length]
