"""Tokens that have left a window and stay as they are: of each head the best so far by LagKV's score.

The middle region is the P best of all tokens that have left, so it does not depend on where a text is cut into calls. A
token joins once, as it leaves the window. Where there is no room, the one with the lowest score leaves for good, of
equal scores the one that came last; it may be the one that has just come.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.documents import EMPTY, from_chunks, keep_only, to_chunks
from lattice_jax.ops.local.far import Leaving
from lattice_jax.ops.local.scores import Scores

NO_SCORE = -1.0  # of a slot that holds no token; scores are 0 or more
_BLOCK = 64  # of queries that share what they are compared with


@flax.struct.dataclass
class Picks:
  """Tokens that stay, the best first; zeros, EMPTY and `NO_SCORE` where there is none.

  key_BHPK, value_BHPV: as they were cached. partition_BCH: scores of the partition whose tokens leave now.
  """

  key_BHPK: jax.Array
  value_BHPV: jax.Array
  position_BHP: jax.Array
  score_BHP: jax.Array
  partition_BCH: jax.Array


@flax.struct.dataclass
class Chosen:
  """Which tokens stay after each token of a call, by their place among P earlier picks and then the T that leave.

  place_BTHP: EMPTY in slots without a token. gone_BTH: which one leaves for good then; EMPTY if none does.
  picks: what stays after the call. gone: what leaves, as `Leaving` with its position.
  """

  place_BTHP: jax.Array
  gone_BTH: jax.Array
  picks: Picks
  gone: Leaving


def empty_picks(
  batch: int, heads: int, picks: int, lag: int, key_dim: int, value_dim: int, dtype: jnp.dtype) -> Picks:
  """No tokens. lag: of a partition."""
  shape, score = (batch, heads, picks), jnp.promote_types(jnp.float32, dtype)
  return Picks(
    jnp.zeros((*shape, key_dim), dtype), jnp.zeros((*shape, value_dim), dtype), jnp.full(shape, EMPTY, jnp.int32),
    jnp.full(shape, NO_SCORE, score), jnp.zeros((batch, lag, heads), score))


def choose(picks: Picks, leaving: Leaving, scores: Scores, starts_BT: jax.Array) -> Chosen:
  """Offers the leaving tokens to the picks, one after another; at the first token of a document there are none.

  The choice has no gradient; keys and values have.
  """
  num, length = picks.score_BHP.shape[2], starts_BT.shape[1]
  slot_P = jnp.arange(num, dtype=jnp.int32)
  place_BHP = jnp.where(picks.position_BHP == EMPTY, EMPTY, slot_P)

  def offer(carry, token):
    start_B11, score_BH1, place, leaves_BH1 = token
    best_BHP, place_BHP = (jnp.where(start_B11, none, x) for none, x in zip((NO_SCORE, EMPTY), carry, strict=True))
    # what was there before stays before an equal
    rank_BH1 = (best_BHP >= score_BH1).sum(-1, keepdims=True)
    best_BHS, place_BHS = (
      _insert(x_BHP, new_BH1, rank_BH1) for x_BHP, new_BH1 in ((best_BHP, score_BH1), (place_BHP, place)))
    best_BHP, after_BHP = (
      jnp.where(leaves_BH1, x_BHS[..., :num], x_BHP) for x_BHS, x_BHP in ((best_BHS, best_BHP), (place_BHS, place_BHP)))
    return (best_BHP, after_BHP), (after_BHP, jnp.where(leaves_BH1[..., 0], place_BHS[..., num], EMPTY))

  tokens = (
    starts_BT.T[:, :, None, None], jnp.swapaxes(scores.score_BTH, 0, 1)[..., None],
    num + jnp.arange(length, dtype=jnp.int32), jnp.swapaxes(leaving.leaves_BTH, 0, 1)[..., None])
  start = jax.lax.stop_gradient(picks.score_BHP), place_BHP
  (best_BHP, last_BHP), (place_TBHP, gone_TBH) = jax.lax.scan(offer, start, tokens)
  found = candidates(picks, leaving)
  gone_BTH = jnp.swapaxes(gone_TBH, 0, 1)
  key_BHTK, value_BHTV, position_BHT = take(found, jnp.moveaxis(gone_BTH, 1, 2))
  stays = Picks(*take(found, last_BHP), best_BHP, jax.lax.stop_gradient(scores.partition_BCH))
  return Chosen(
    place_BTHP=jnp.moveaxis(place_TBHP, 0, 1), gone_BTH=gone_BTH, picks=stays,
    gone=Leaving(*(jnp.swapaxes(x, 1, 2) for x in (key_BHTK, value_BHTV, position_BHT)), gone_BTH != EMPTY))


def attend_picks(
  q_BTQK: jax.Array, picks: Picks, leaving: Leaving, scores: Scores, starts_BT: jax.Array, is_token_BT: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], Picks, Leaving]:
  """Attention of every query to what stays once its token has come, what stays after the call, and what leaves.

  Blocks of queries are compared with what stayed before them and with all that leaves meanwhile: T·(P + 64) products.
  Queries that are no tokens are replaced by zeros at the door.

  Returns:
    (Output [B, T, Q, V], log-sum-exp [B, T, Q]), 0 and MASKED where nothing stays; the picks; the tokens that leave.
  """
  chosen = choose(picks, leaving, scores, starts_BT)
  length, num = q_BTQK.shape[1], picks.score_BHP.shape[2]
  block = min(_BLOCK, length)
  q_BTQK = keep_only(is_token_BT, q_BTQK)
  place_BTHP = jnp.where(is_token_BT[..., None, None], chosen.place_BTHP, EMPTY)
  q_NBCQK, place_NBCHP = to_chunks(q_BTQK, block), to_chunks(place_BTHP, block, EMPTY)
  first_BHP = jnp.where(picks.position_BHP == EMPTY, EMPTY, jnp.arange(num))
  before_NBHP = jnp.concatenate([first_BHP[None], chosen.place_BTHP[:, block - 1:-1:block].swapaxes(0, 1)])
  own_NC = num + jnp.arange(len(q_NBCQK) * block).reshape(-1, block)
  own_NBHC = jnp.broadcast_to(own_NC[:, None, None], (*before_NBHP.shape[:3], block))
  place_NBHS = jnp.concatenate([before_NBHP, jnp.where(own_NBHC < num + length, own_NBHC, EMPTY)], -1)

  @jax.checkpoint
  def attend_block(found, q_BCQK, place_BCHP, place_BHS):
    key_BHSK, value_BHSV, _ = take(found, place_BHS)
    sees_BCHS = (place_BCHP[..., None, :] == place_BHS[:, None, ..., None]).any(-1) & (place_BHS != EMPTY)[:, None]
    return attend_seen(q_BCQK, key_BHSK, value_BHSV, sees_BCHS)

  read = jax.vmap(attend_block, (None, 0, 0, 0))(candidates(picks, leaving), q_NBCQK, place_NBCHP, place_NBHS)
  return tuple(from_chunks(x, length) for x in read), chosen.picks, chosen.gone


def attend_seen(
  q_BTQK: jax.Array, key_BHSK: jax.Array, value_BHSV: jax.Array, sees_BTHS: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Softmax attention to the keys that each query sees, fp32 or wider; 0 and MASKED where it sees none."""
  dtype = jnp.promote_types(jnp.float32, q_BTQK.dtype)
  q_BTQK, key_BHSK, value_BHSV = (x.astype(dtype) for x in (q_BTQK, key_BHSK, value_BHSV))
  batch, length, _, key_dim = q_BTQK.shape
  q_BTHGK = q_BTQK.reshape(batch, length, key_BHSK.shape[1], -1, key_dim) * key_dim**-0.5
  score_BTHGS = jnp.einsum("BTHGK,BHSK->BTHGS", q_BTHGK, key_BHSK, precision="highest")
  sees_BTHGS = sees_BTHS[..., None, :]
  score_BTHGS = jnp.where(sees_BTHGS, score_BTHGS, MASKED)
  lse_BTHG = jax.nn.logsumexp(score_BTHGS, axis=-1)
  weight_BTHGS = jnp.where(sees_BTHGS, jnp.exp(score_BTHGS - lse_BTHG[..., None]), 0)
  out_BTHGV = jnp.einsum("BTHGS,BHSV->BTHGV", weight_BTHGS, value_BHSV, precision="highest")
  lse_BTHG = jnp.where(sees_BTHGS.any(-1), lse_BTHG, MASKED)
  return out_BTHGV.reshape(batch, length, -1, value_BHSV.shape[-1]), lse_BTHG.reshape(batch, length, -1)


def candidates(picks: Picks, leaving: Leaving) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Keys [B, H, P + T, K], values and positions of the earlier picks and of the tokens that leave."""
  return tuple(
    jnp.concatenate([old_BHP, jnp.swapaxes(new_BTH, 1, 2).astype(old_BHP.dtype)], 2) for old_BHP, new_BTH in (
      (picks.key_BHPK, leaving.key_BTHK), (picks.value_BHPV, leaving.value_BTHV),
      (picks.position_BHP, leaving.position_BTH)))


def take(
  found: tuple[jax.Array, jax.Array, jax.Array], place_BHS: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Those at a place; zeros and the position EMPTY where that is EMPTY."""
  key_BHSK, value_BHSV, position_BHS = (
    jnp.take_along_axis(x_BHM, place_BHS.reshape(*place_BHS.shape, *(1,) * (x_BHM.ndim - 3)), 2, mode="clip")
    for x_BHM in found)
  is_there_BHS = place_BHS != EMPTY
  return *keep_only(is_there_BHS, (key_BHSK, value_BHSV)), jnp.where(is_there_BHS, position_BHS, EMPTY)


def _insert(x_BHP: jax.Array, new: jax.Array, rank_BH1: jax.Array) -> jax.Array:
  """[B, H, P + 1]: `new` at its rank, what stood there and behind it one place on."""
  slot_S = jnp.arange(x_BHP.shape[2] + 1)
  before_BHS, behind_BHS = jnp.pad(x_BHP, ((0, 0), (0, 0), (0, 1))), jnp.pad(x_BHP, ((0, 0), (0, 0), (1, 0)))
  return jnp.where(slot_S < rank_BH1, before_BHS, jnp.where(slot_S == rank_BH1, new, behind_BHS))
