"""Attention to what has left the windows, through a summary (`lattice_jax/ops/far_summary`) that loses something.

Each query reads the summary of exactly the tokens that are older than its own window, so every query needs one of its
own: blocks of tokens are first added whole, one block after another, which gives the
summary before each block; then all blocks go on side by side, token by token. That takes about 2 √T steps for a call of
T tokens, and never depends on where a text is cut into calls.
"""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.fold import Evicted, fold_in
from lattice_jax.ops.documents import from_chunks, keep_only, to_chunks
from lattice_jax.ops.far_summary import FarSummary


@flax.struct.dataclass
class Leaving:
  """The token that leaves each head's window as a token of the call arrives, where one does.

  key_BTHK, value_BTHV: zeros where none does. position_BTH: its index in its document.
  """

  key_BTHK: jax.Array
  value_BTHV: jax.Array
  position_BTH: jax.Array
  leaves_BTH: jax.Array

  def evicted(self, q_BTQK: jax.Array, is_counted_BT: jax.Array) -> Evicted:
    """Those of the tokens that count, as a fold takes them, with the queries of the tokens that arrive."""
    leaves_BTH = self.leaves_BTH & is_counted_BT[..., None]
    q_BTHGK = q_BTQK.reshape(*leaves_BTH.shape, -1, q_BTQK.shape[-1])
    return Evicted(*(
      jnp.swapaxes(x, 1, 2) for x in (self.key_BTHK, self.value_BTHV, self.position_BTH, leaves_BTH, q_BTHGK)))


def attend_far(
  fold: FarSummary, q_BTQK: jax.Array, leaving: Leaving, starts_BT: jax.Array, summary: Any, *, block_len: int = 0,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """What each query reads once its token has arrived, and the summary after the call.

  starts_BT: the first tokens of documents, at which a summary begins anew. block_len: of the blocks that go on side by
  side, a matter of cost alone; 0 = √T.
  """
  length = q_BTQK.shape[1]
  if length == 1:
    summary = fold_in(fold, summary, leaving.evicted(q_BTQK, jnp.ones_like(starts_BT)), starts_BT[:, 0])
    return fold.read(q_BTQK, summary), summary
  chunk = block_len or math.isqrt(length - 1) + 1
  q_NBC, leaving_NBC, starts_NBC = (to_chunks(x, chunk) for x in (q_BTQK, leaving, starts_BT))

  def add_block(summary, block):
    q_BCQK, leaving, starts_BC = block
    # of a block in which documents begin, what left the last of them
    is_last_BC = jnp.cumsum(starts_BC, axis=1) == starts_BC.sum(1)[:, None]
    return fold_in(fold, summary, leaving.evicted(q_BCQK, is_last_BC), starts_BC.any(1)), summary

  first = jax.tree.map(lambda x: x[:-1], (q_NBC, leaving_NBC, starts_NBC))
  last, before = jax.lax.scan(add_block, summary, first)
  before_NB = jax.tree.map(lambda before, last: jnp.concatenate([before, last[None]]), before, last)

  @jax.checkpoint
  def add_token(summary_M, token):
    q_MQK, leaving, starts_M = jax.tree.map(lambda x_M: x_M[:, None], token)
    summary_M = fold_in(fold, summary_M, leaving.evicted(q_MQK, jnp.ones_like(starts_M)), starts_M[:, 0])
    return summary_M, fold.read(q_MQK, summary_M)

  num, batch = starts_NBC.shape[:2]
  tokens_CM = jax.tree.map(
    lambda x_NBC: jnp.moveaxis(x_NBC.reshape(num * batch, *x_NBC.shape[2:]), 1, 0), (q_NBC, leaving_NBC, starts_NBC))
  after_M, read_CM = jax.lax.scan(
    add_token, jax.tree.map(lambda x_NB: x_NB.reshape(num * batch, *x_NB.shape[2:]), before_NB), tokens_CM)

  def by_token(x_CM1):
    x_MC = jnp.moveaxis(x_CM1[:, :, 0], 0, 1)
    return from_chunks(x_MC.reshape(num, batch, *x_MC.shape[1:]), length)

  after = jax.tree.map(lambda x_M: x_M[-batch:], after_M)
  return tuple(by_token(x) for x in read_CM), after


def no_one_leaves(k_BTHK: jax.Array, v_BTHV: jax.Array) -> Leaving:
  """Of heads that see the whole document."""
  shape = k_BTHK.shape[:3]
  return Leaving(
    jnp.zeros_like(k_BTHK), jnp.zeros_like(v_BTHV), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))


def leaving_of(
  key_BTHK: jax.Array, value_BTHV: jax.Array, position_BT: jax.Array, leaves_BT: jax.Array) -> Leaving:
  """Of heads from which the same tokens leave, whatever the arrays hold elsewhere."""
  key_BTHK, value_BTHV = keep_only(leaves_BT, (key_BTHK, value_BTHV))
  shape = key_BTHK.shape[:3]
  return Leaving(key_BTHK, value_BTHV, *(jnp.broadcast_to(x[..., None], shape) for x in (position_BT, leaves_BT)))
