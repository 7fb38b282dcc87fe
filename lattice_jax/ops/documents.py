"""Documents in rows of tokens: where they begin, to whom a state belongs, and rows cut into chunks.

Padding and documents are the op's own duty, not that of the layer above it: every public op takes `valid` (or an order
with EMPTY slots) and must give the same outputs at valid tokens, the same state and the same gradients whatever numbers
stand at invalid tokens, NaN and infinity included, and must give them a gradient of zero. Its docstring names the line
that does so, most often `keep_only`, and a case of its tests feeds NaN and fails when that line is dropped.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

EMPTY = -1  # id of a slot that holds no token, and of a state before its first token


def document_runs(
  ids_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"], document_B: Int[Array, "B"]
) -> Int[Array, "B T"]:
  """Number of document changes up to each token, EMPTY where it is invalid; 0 goes on with the state's document.

  Documents are compared by this number and not by id, so an id that comes back is a new document.
  """
  before_BT = jnp.concatenate([document_B[:, None], ids_BT[:, :-1]], axis=1)
  return jnp.where(valid_BT, jnp.cumsum(ids_BT != before_BT, axis=1, dtype=jnp.int32), EMPTY)


def document_after(
  ids_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"], document_B: Int[Array, "B"]
) -> Int[Array, "B"]:
  """The document of each row's last valid token, or the state's where there is none."""
  num_valid_B = valid_BT.sum(1)
  last_B = jnp.take_along_axis(ids_BT, jnp.maximum(num_valid_B - 1, 0)[:, None], 1)[:, 0]
  return jnp.where(num_valid_B > 0, last_B, document_B)


def relabel(id_BS: jax.Array, document: jax.Array | int) -> jax.Array:
  """`document` in every slot that holds a token."""
  return jnp.where(id_BS == EMPTY, EMPTY, document)


def document_starts(
  ids_BT: Int[Array, "B T"], valid_BT: Bool[Array, "B T"], document_B: Int[Array, "B"]
) -> Bool[Array, "B T"]:
  """Valid tokens of another document than the token before them, or than the state."""
  run_BT = document_runs(ids_BT, valid_BT, document_B)
  return valid_BT & (run_BT != jnp.pad(run_BT, ((0, 0), (1, 0)))[:, :-1])


def select(is_B: jax.Array, chosen: Any, other: Any) -> Any:
  """Trees of arrays: `chosen` in the rows where `is_B`, `other` elsewhere. A start, without rows, is in all of them."""
  return jax.tree.map(lambda a, b: jnp.where(is_B.reshape(-1, *(1,) * (b.ndim - 1)), a, b), chosen, other)


def keep_only(is_kept: jax.Array, tree: Any, neutral: float = 0) -> Any:
  """Arrays with `neutral` in place, whatever they held, of what is not kept; the mask has their first axes."""

  def keep(x: jax.Array) -> jax.Array:
    mask = is_kept.reshape(*is_kept.shape, *(1,) * (x.ndim - is_kept.ndim))
    return jnp.where(mask, x, jnp.asarray(neutral, x.dtype))

  return jax.tree.map(keep, tree)


def last_slots(joined: Any, num_new_B: jax.Array, window: int) -> Any:
  """Of arrays of W old slots and then new tokens [B, W + T, …], the newest W once `num_new_B` tokens are taken in."""
  slot_BW = num_new_B[:, None] + jnp.arange(window)
  return jax.tree.map(lambda x_BS: jax.vmap(lambda x_S, slot_W: x_S[slot_W])(x_BS, slot_BW), joined)


def pad_time(tree: Any, padding: int, neutral: float = 0) -> Any:
  """Arrays [B, T, …] with so many more tokens at the end."""
  return jax.tree.map(
    lambda x_BT: jnp.pad(x_BT, ((0, 0), (0, padding), *((0, 0),) * (x_BT.ndim - 2)), constant_values=neutral)
    if padding else x_BT, tree)


def to_chunks(tree: Any, chunk_len: int, neutral: float = 0) -> Any:
  """Arrays [B, T, …] → [N, B, C, …], filled up with `neutral`."""

  def cut(x_BT: jax.Array) -> jax.Array:
    x_BT = pad_time(x_BT, -x_BT.shape[1] % chunk_len, neutral)
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, chunk_len, *x_BT.shape[2:]), 1, 0)

  return jax.tree.map(cut, tree)


def from_chunks(x_NBC: jax.Array, length: int) -> jax.Array:
  """[N, B, C, …] → [B, T, …]."""
  x_BNC = jnp.moveaxis(x_NBC, 0, 1)
  return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])[:, :length]
