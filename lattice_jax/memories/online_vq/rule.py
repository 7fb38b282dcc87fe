"""What online vector-quantised attention reads, and how a full chunk joins its dictionary (README.md)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.memories.online_vq.config import GROWTHS
from lattice_jax.ops.attention.reference import MASKED
from lattice_jax.ops.documents import select


@flax.struct.dataclass
class Codes:
  """key_BHMK, value_BHMV: means of the tokens of each code. count_BHM: how many these are, 0 of a code without any."""

  key_BHMK: jax.Array
  value_BHMV: jax.Array
  count_BHM: jax.Array


# The dictionary, and keys [B, H, C, K] and values [B, H, C, V] of the open chunk, zeros where it has no token yet.
Memory = tuple[Codes, jax.Array, jax.Array]


def num_codes(tokens: jax.Array, codes: int, growth: str) -> jax.Array:
  """How many codes a dictionary has after so many tokens, int32; it never grows by more than the tokens that came."""
  if growth not in GROWTHS:
    raise ValueError(f"growth={growth!r} of op 'online_vq' is not one of {', '.join(GROWTHS)}.")
  if growth == "full":
    return jnp.minimum(tokens, codes)
  # floor(t M/(t + M)) in whole numbers that do not overflow as t M would
  plateau = codes + (-codes * codes) // (tokens + codes)
  return jnp.where(tokens > 0, jnp.maximum(plateau, 1), 0)


def read(
  q_BHCK: jax.Array, codes: Codes, sees_codes_BC: jax.Array, key_BHSK: jax.Array, value_BHSV: jax.Array,
  is_seen_BCS: jax.Array,
) -> jax.Array:
  """[B, H, C, V]: one softmax over the codes, each with the weight of its tokens, and over single tokens."""
  count_BH1M = codes.count_BHM[:, :, None]
  score_BHCM = jnp.einsum("BHCK,BHMK->BHCM", q_BHCK, codes.key_BHMK, precision="highest")
  score_BHCM += jnp.log(jnp.maximum(count_BH1M, 1))
  score_BHCM = jnp.where((count_BH1M > 0) & sees_codes_BC[:, None, :, None], score_BHCM, MASKED)
  score_BHCS = jnp.einsum("BHCK,BHSK->BHCS", q_BHCK, key_BHSK, precision="highest")
  score_BHCS = jnp.where(is_seen_BCS[:, None], score_BHCS, MASKED)
  weight = jax.nn.softmax(jnp.concatenate([score_BHCM, score_BHCS], -1))
  num = score_BHCM.shape[-1]
  out_BHCV = jnp.einsum("BHCM,BHMV->BHCV", weight[..., :num], codes.value_BHMV, precision="highest")
  return out_BHCV + jnp.einsum("BHCS,BHSV->BHCV", weight[..., num:], value_BHSV, precision="highest")


def fold(codes: Codes, key_BHCK: jax.Array, value_BHCV: jax.Array, growth: str) -> Codes:
  """The dictionary after a full chunk: every token moves the means of its code by its part of them.

  Which code a token joins, and counts, are constants to the gradient.
  """
  added_BHCM = jax.lax.stop_gradient(_assign(codes, key_BHCK, growth))
  added_BHM = added_BHCM.sum(2)
  count_BHM = codes.count_BHM + added_BHM
  share_BHM1 = (1 / jnp.maximum(count_BHM, 1))[..., None]

  def move(mean_BHMV, new_BHCV):
    # in this form means to which nothing is added stay as they are, to the last bit
    total_BHMV = jnp.einsum("BHCM,BHCV->BHMV", added_BHCM, new_BHCV, precision="highest")
    return mean_BHMV + (total_BHMV - added_BHM[..., None] * mean_BHMV) * share_BHM1

  return Codes(move(codes.key_BHMK, key_BHCK), move(codes.value_BHMV, value_BHCV), count_BHM)


def _assign(codes: Codes, key_BHCK: jax.Array, growth: str) -> jax.Array:
  """One-hot codes [B, H, C, M] of a chunk's tokens: of the new ones, and of those that are nearest to others."""
  num, chunk = codes.count_BHM.shape[-1], key_BHCK.shape[2]
  tokens_BH1 = codes.count_BHM.sum(-1, keepdims=True).astype(jnp.int32)
  before_BH1, after_BH1 = (num_codes(tokens_BH1 + more, num, growth) for more in (0, chunk))
  near_BHCM = jnp.einsum("BHCK,BHMK->BHCM", key_BHCK, codes.key_BHMK, precision="highest")
  near_BHCM = jnp.where(codes.count_BHM[:, :, None] > 0, near_BHCM, MASKED)
  pair_BHCS = jnp.einsum("BHCK,BHSK->BHCS", key_BHCK, key_BHCK, precision="highest")
  # to an empty dictionary the first token comes first, and the others are held against it
  to_first_BHC = pair_BHCS[..., 0].at[..., 0].set(MASKED)
  best_BHC = jnp.where(tokens_BH1 == 0, to_first_BHC, near_BHCM.max(-1))

  place_C = jnp.arange(chunk)
  is_less_BHCS = best_BHC[..., None, :] < best_BHC[..., None]
  is_tie_BHCS = (best_BHC[..., None, :] == best_BHC[..., None]) & (place_C < place_C[:, None])
  is_new_BHC = (is_less_BHCS | is_tie_BHCS).sum(-1) < after_BH1 - before_BH1
  # in the order of tokens, not of scores, which rounding might exchange
  new_BHC = before_BH1 + jnp.cumsum(is_new_BHC, -1) - 1
  score_BHCN = jnp.concatenate([near_BHCM, jnp.where(is_new_BHC[..., None, :], pair_BHCS, MASKED)], -1)
  nearest_BHC = score_BHCN.argmax(-1)
  joined_BHC = jnp.take_along_axis(new_BHC, jnp.maximum(nearest_BHC - num, 0), -1)
  code_BHC = jnp.where(is_new_BHC, new_BHC, jnp.where(nearest_BHC < num, nearest_BHC, joined_BHC))
  return jax.nn.one_hot(code_BHC, num, dtype=codes.count_BHM.dtype)


def close(is_full_B: jax.Array, memory: Memory, growth: str) -> Memory:
  """The memory in which full chunks have joined the dictionary, and are empty."""

  def end(memory: Memory) -> Memory:
    codes, key_BHCK, value_BHCV = memory
    dtype = codes.key_BHMK.dtype
    codes = fold(codes, key_BHCK.astype(dtype), value_BHCV.astype(dtype), growth)
    return select(is_full_B, (codes, jnp.zeros_like(key_BHCK), jnp.zeros_like(value_BHCV)), memory)

  return jax.lax.cond(is_full_B.any(), end, lambda memory: memory, memory)
