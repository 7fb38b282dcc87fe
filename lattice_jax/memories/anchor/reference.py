"""The mask as the paper defines it (arXiv 2402.07616, section 3), written out for all pairs of a call's tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.places import ALL_LEVELS, Places, is_seen
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import EMPTY, keep_only


def visible(config: AnchorConfig, places: Places) -> jax.Array:
  """Bool [B, T, S], query and key: the own segment up to itself, and anchors and protected tokens before it."""
  run_BT, segment_BT, time_T = places.arriving.run_BT, places.segment_BT, jnp.arange(places.segment_BT.shape[1])
  is_own_BTS = (segment_BT[:, :, None] == segment_BT[:, None]) & (time_T[:, None] >= time_T)
  is_before_BTS = (run_BT[:, :, None] == run_BT[:, None]) & (segment_BT[:, None] < segment_BT[:, :, None])
  is_seen_anchor_BTS = places.is_anchor_BT[:, None] & is_seen(
    config, places.number_BT[:, None], places.passed_BT[:, :, None], places.below_BT[:, :, None])
  is_seen_protected_BTS = places.is_protected_BT[:, None] & (places.below_BT == ALL_LEVELS)[:, :, None]
  is_token_BT = segment_BT != EMPTY
  is_pair_BTS = is_token_BT[:, :, None] & is_token_BT[:, None]
  return is_pair_BTS & (is_own_BTS | is_before_BTS & (is_seen_anchor_BTS | is_seen_protected_BTS))


def attend_reference(
  config: AnchorConfig, q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, places: Places,
) -> tuple[jax.Array, jax.Array]:
  """Output [B, T, Q, V] and log-sum-exp [B, T, Q], float32, from every score at once."""
  q_BTQK, k_BTHK, v_BTHV = keep_only(places.segment_BT != EMPTY, (q_BTQK, k_BTHK, v_BTHV))
  q_BTQK, k_BTHK, v_BTHV = (x.astype(jnp.float32) for x in (q_BTQK, k_BTHK, v_BTHV))
  group = q_BTQK.shape[2] // k_BTHK.shape[2]
  k_BTQK, v_BTQV = (jnp.repeat(x, group, axis=2) for x in (k_BTHK, v_BTHV))
  score_BQTS = jnp.einsum("BTQK,BSQK->BQTS", q_BTQK, k_BTQK, precision="highest") * q_BTQK.shape[-1] ** -0.5
  score_BQTS = jnp.where(visible(config, places)[:, None], score_BQTS, MASKED)
  lse_BQT = jax.nn.logsumexp(score_BQTS, axis=-1)
  is_token_BT = places.segment_BT != EMPTY
  weight_BQTS = jnp.where(is_token_BT[:, None, :, None], jnp.exp(score_BQTS - lse_BQT[..., None]), 0.0)
  out_BTQV = jnp.einsum("BQTS,BSQV->BTQV", weight_BQTS, v_BTQV, precision="highest")
  return out_BTQV, jnp.where(is_token_BT[..., None], jnp.moveaxis(lse_BQT, 1, 2), MASKED)
