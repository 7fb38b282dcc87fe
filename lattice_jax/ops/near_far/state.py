"""The window of recent tokens and the summary of older ones, from call to call."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY, document_after, document_runs, keep_only, last_slots, relabel


@flax.struct.dataclass
class Stream:
  """Slots of a row, oldest first. tokens: arrays [B, S, …]. id_BS: document of each slot, EMPTY if it has no token."""

  tokens: Any
  id_BS: jax.Array

  def followed_by(self, tokens: Any, id_BT: jax.Array) -> Stream:
    """These slots and then new tokens, in the dtypes of these."""
    return jax.tree.map(
      lambda old_BW, new_BT: jnp.concatenate([old_BW, new_BT.astype(old_BW.dtype)], 1), self, Stream(tokens, id_BT))


@flax.struct.dataclass
class Far:
  """summary: of older tokens, arrays [B, …], all zeros where there are none. document_B: whose they are, or EMPTY."""

  summary: Any
  document_B: jax.Array


@flax.struct.dataclass
class NearFarState:
  """near: the last W tokens. far: everything older. Both are of one document, `far.document_B`."""

  near: Stream
  far: Far


def empty_state(batch: int, window: int, token: Any, summary: Any) -> NearFarState:
  """A state that has seen nothing. token, summary: shapes and dtypes of those of one row and slot, or arrays."""

  def zeros(*shape: int) -> Any:
    return lambda like: jnp.zeros((*shape, *like.shape), like.dtype)

  near = Stream(jax.tree.map(zeros(batch, window), token), jnp.full((batch, window), EMPTY, jnp.int32))
  return NearFarState(near, Far(jax.tree.map(zeros(batch), summary), jnp.full((batch,), EMPTY, jnp.int32)))


def to_runs(state: NearFarState, ids: jax.Array, valid: jax.Array) -> tuple[NearFarState, jax.Array, jax.Array]:
  """The state with its document as run 0, the runs of the call's tokens, and the document after the call."""
  document_B = state.far.document_B
  run_BT, after_B = document_runs(ids, valid, document_B), document_after(ids, valid, document_B)
  near = state.near.replace(id_BS=relabel(state.near.id_BS, 0))
  return NearFarState(near, state.far.replace(document_B=jnp.zeros_like(document_B))), run_BT, after_B


def close(stream: Stream, window: int, num_valid_B: jax.Array, far: Far) -> NearFarState:
  """The state after `num_valid_B` new tokens a row, given the summary of all older slots of the stream.

  Slots and summaries of documents other than the last one are emptied, so that equal histories give equal states.
  """
  last = last_slots(stream, num_valid_B, window)
  # ids along a row are a run of EMPTY, then documents in order, so the window's last slot holds the newest token.
  document_B = last.id_BS[:, -1]
  is_same_BW = last.id_BS == document_B[:, None]
  near = Stream(keep_only(is_same_BW, last.tokens), jnp.where(is_same_BW, last.id_BS, EMPTY))
  return NearFarState(near, Far(keep_only(far.document_B == document_B, far.summary), document_B))


def from_runs(state: NearFarState, document_B: jax.Array) -> NearFarState:
  """Undoes `to_runs`: the document after the call takes the place of its run."""
  near = state.near.replace(id_BS=relabel(state.near.id_BS, document_B[:, None]))
  return NearFarState(near, state.far.replace(document_B=document_B))
