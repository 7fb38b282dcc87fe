"""The mask of local attention, written out for all pairs of a call's tokens and every head; picks token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY, keep_only, select
from lattice_jax.ops.local import ALL, HeadGroup, Leaving, Picks, Scores, take_heads
from lattice_jax.ops.local.picks import NO_SCORE, attend_seen


def visible(run_BT: jax.Array, index_BT: jax.Array, window: int | jax.Array, *, sinks: int) -> jax.Array:
  """Bool [B, T, S], query and key: a document's first tokens, and the last `window` up to the query."""
  back_BTS = index_BT[:, :, None] - index_BT[:, None]
  is_near_BTS = (index_BT < sinks)[:, None] | (back_BTS < window) | (jnp.asarray(window) == ALL)
  is_pair_BTS = (run_BT[:, :, None] == run_BT[:, None]) & (run_BT != EMPTY)[:, None]
  return is_pair_BTS & (back_BTS >= 0) & is_near_BTS


def attend_reference(
  q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, run_BT: jax.Array, index_BT: jax.Array,
  groups: tuple[HeadGroup, ...], layer: jax.Array, *, sinks: int,
) -> list[tuple[jax.Array, jax.Array]]:
  """As `ops.local.attend_band`, from every score at once."""
  kv_heads, is_token_BT = k_BTHK.shape[2], run_BT != EMPTY
  q_BTQK, k_BTHK, v_BTHV = (
    x.astype(jnp.float32) for x in keep_only(is_token_BT, (q_BTQK, k_BTHK, v_BTHV)))
  found = []
  for group in groups:
    own_BTQK, *own = (take_heads(x, group, kv_heads) for x in (q_BTQK, k_BTHK, v_BTHV))
    k_BTQK, v_BTQV = (jnp.repeat(x, own_BTQK.shape[2] // x.shape[2], axis=2) for x in own)
    score_BQTS = jnp.einsum("BTQK,BSQK->BQTS", own_BTQK, k_BTQK, precision="highest") * q_BTQK.shape[-1] ** -0.5
    sees_BTS = visible(run_BT, index_BT, group.window(layer, 2**30), sinks=sinks)
    score_BQTS = jnp.where(sees_BTS[:, None], score_BQTS, MASKED)
    lse_BQT = jax.nn.logsumexp(score_BQTS, axis=-1)
    weight_BQTS = jnp.where(is_token_BT[:, None, :, None], jnp.exp(score_BQTS - lse_BQT[..., None]), 0.0)
    out_BTQV = jnp.einsum("BQTS,BSQV->BTQV", weight_BQTS, v_BTQV, precision="highest")
    found.append((out_BTQV, jnp.where(is_token_BT[..., None], jnp.moveaxis(lse_BQT, 1, 2), MASKED)))
  return found


def read_picks(
  q_BTQK: jax.Array, picks: Picks, leaving: Leaving, scores: Scores, starts_BT: jax.Array, is_token_BT: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], Picks, Leaving]:
  """As `ops.local.attend_picks`: every token in turn sorts what stays and what leaves, and reads the best."""
  num = picks.score_BHP.shape[2]
  none = Picks(
    *(jnp.zeros_like(x) for x in (picks.key_BHPK, picks.value_BHPV)), jnp.full_like(picks.position_BHP, EMPTY),
    jnp.full_like(picks.score_BHP, NO_SCORE), picks.partition_BCH)

  def one_token(before: Picks, token):
    q_BQK, left, score_BH, start_B, is_token_B = token
    before = select(start_B, none, before)
    new = Picks(
      left.key_BTHK, left.value_BTHV, jnp.where(left.leaves_BTH, left.position_BTH, EMPTY),
      jnp.where(left.leaves_BTH, score_BH, NO_SCORE), None)
    both = jax.tree.map(
      lambda old, x: jnp.concatenate([old, x[:, :, None].astype(old.dtype)], 2),
      before.replace(partition_BCH=None), new)
    order_BHS = jnp.argsort(-both.score_BHP, axis=2, stable=True)
    best = jax.tree.map(
      lambda x: jnp.take_along_axis(x, order_BHS.reshape(*order_BHS.shape, *(1,) * (x.ndim - 3)), 2), both)
    # what stands in free slots has no gradient either
    best = best.replace(**keep_only(best.position_BHP != EMPTY, {
      "key_BHPK": best.key_BHPK, "value_BHPV": best.value_BHPV}))
    after, gone = jax.tree.map(lambda x: x[:, :, :num], best), jax.tree.map(lambda x: x[:, :, num], best)
    sees_BHP = (after.position_BHP != EMPTY) & is_token_B[:, None, None]
    read = attend_seen(q_BQK[:, None], after.key_BHPK, after.value_BHPV, sees_BHP[:, None])
    left = Leaving(gone.key_BHPK, gone.value_BHPV, gone.position_BHP, gone.position_BHP != EMPTY)
    return after.replace(partition_BCH=before.partition_BCH), (tuple(x[:, 0] for x in read), left)

  by_time = jax.tree.map(
    lambda x_BT: jnp.swapaxes(x_BT, 0, 1), (q_BTQK, leaving, scores.score_BTH, starts_BT, is_token_BT))
  start = picks.replace(score_BHP=jax.lax.stop_gradient(picks.score_BHP))
  after, found = jax.lax.scan(one_token, start, by_time)
  read, gone = jax.tree.map(lambda x_TB: jnp.swapaxes(x_TB, 0, 1), found)
  return read, after.replace(partition_BCH=scores.partition_BCH), gone
