"""Documents in rows of tokens: where they begin, whose a state is, and rows cut into chunks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

EMPTY = -1  # id of a slot that holds no token, and of a state before its first token


def document_runs(ids_BT: jax.Array, valid_BT: jax.Array, document_B: jax.Array) -> jax.Array:
  """Number of document changes up to each token, EMPTY where it is invalid; 0 goes on with the state's document.

  Documents are compared by this number and not by id, so an id that comes back is a new document.
  """
  before_BT = jnp.concatenate([document_B[:, None], ids_BT[:, :-1]], axis=1)
  return jnp.where(valid_BT, jnp.cumsum(ids_BT != before_BT, axis=1, dtype=jnp.int32), EMPTY)


def document_after(ids_BT: jax.Array, valid_BT: jax.Array, document_B: jax.Array) -> jax.Array:
  """The document of each row's last valid token, or the state's where there is none."""
  num_valid_B = valid_BT.sum(1)
  last_B = jnp.take_along_axis(ids_BT, jnp.maximum(num_valid_B - 1, 0)[:, None], 1)[:, 0]
  return jnp.where(num_valid_B > 0, last_B, document_B)


def relabel(id_BS: jax.Array, document: jax.Array | int) -> jax.Array:
  """`document` in every slot that holds a token."""
  return jnp.where(id_BS == EMPTY, EMPTY, document)


def document_starts(ids_BT: jax.Array, is_valid_BT: jax.Array, document_B: jax.Array) -> jax.Array:
  """Bool [B, T]: valid tokens of another document than the token before them, or than the state."""
  run_BT = document_runs(ids_BT, is_valid_BT, document_B)
  return is_valid_BT & (run_BT != jnp.pad(run_BT, ((0, 0), (1, 0)))[:, :-1])


def select(is_B: jax.Array, chosen: Any, other: Any) -> Any:
  """Trees of arrays: `chosen` in the rows where `is_B`, `other` elsewhere. A start, without rows, is in all of them."""
  return jax.tree.map(lambda a, b: jnp.where(is_B.reshape(-1, *(1,) * (b.ndim - 1)), a, b), chosen, other)


def keep_only(is_kept_BT: jax.Array, tree: Any) -> Any:
  """Arrays [B, T, …] with zeros, whatever they held, at all other tokens."""
  return jax.tree.map(
    lambda x_BT: jnp.where(is_kept_BT.reshape(*is_kept_BT.shape, *(1,) * (x_BT.ndim - 2)), x_BT, 0), tree)


def to_chunks(x_BT: jax.Array, chunk_len: int, neutral: float = 0) -> jax.Array:
  """[B, T, …] → [N, B, C, …], filled up with `neutral`."""
  padding = -x_BT.shape[1] % chunk_len
  if padding:
    x_BT = jnp.pad(x_BT, ((0, 0), (0, padding), *((0, 0),) * (x_BT.ndim - 2)), constant_values=neutral)
  return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, chunk_len, *x_BT.shape[2:]), 1, 0)


def from_chunks(x_NBC: jax.Array, length: int) -> jax.Array:
  """[N, B, C, …] → [B, T, …]."""
  x_BNC = jnp.moveaxis(x_NBC, 0, 1)
  return x_BNC.reshape(x_BNC.shape[0], -1, *x_BNC.shape[3:])[:, :length]
