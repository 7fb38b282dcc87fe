"""The compressive cache: older tokens summed per code, as a count and a mean of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.near_far import FarMemory


@flax.struct.dataclass
class Summary:
  """count_BHM: fp32 tokens per code. mean_BHMV: fp32 mean of their values."""

  count_BHM: jax.Array
  mean_BHMV: jax.Array


def vq_memory(num_codes: int, read: Callable[..., Any]) -> FarMemory:
  """Transformer-VQ as an instance of `lattice_jax.ops.near_far`."""

  def summarize(tokens: Any, is_added_BC: jax.Array) -> Summary:
    one_hot_BCHM = jax.nn.one_hot(tokens.code_BSH, num_codes, dtype=tokens.value_BSHV.dtype)
    one_hot_BCHM *= is_added_BC[..., None, None]
    count_BHM = one_hot_BCHM.astype(jnp.float32).sum(1)
    sum_BHMV = jnp.einsum("BCHM,BCHV->BHMV", one_hot_BCHM, tokens.value_BSHV, preferred_element_type=jnp.float32)
    return Summary(count_BHM, sum_BHMV / jnp.maximum(count_BHM, 1.0)[..., None])

  return FarMemory(summarize, _merge, read, is_lossless=True, merge_all=_merge_all)


def _merge(earlier: Summary, later: Summary) -> Summary:
  count_BHM = earlier.count_BHM + later.count_BHM
  share_BHM = later.count_BHM / jnp.maximum(count_BHM, 1.0)
  # In this form a mean to which nothing is added stays as it is, to the last bit.
  mean_BHMV = earlier.mean_BHMV + (later.mean_BHMV - earlier.mean_BHMV) * share_BHM[..., None]
  return Summary(count_BHM, mean_BHMV)


def _merge_all(weight_RNB: jax.Array, summaries: Summary) -> Summary:
  count_RBHM = jnp.einsum("RNB,NBHM->RBHM", weight_RNB, summaries.count_BHM, precision="highest")
  share_RNBHM = weight_RNB[..., None, None] * summaries.count_BHM[None] / jnp.maximum(count_RBHM, 1.0)[:, None]
  # as in `_merge`, the mean of a code without tokens stays what it was at the start
  is_unused_RBHM = (count_RBHM == 0) & (weight_RNB[:, 0, :, None, None] > 0)
  share_RNBHM = share_RNBHM.at[:, 0].add(is_unused_RBHM)
  return Summary(
    count_RBHM, jnp.einsum("RNBHM,NBHMV->RBHMV", share_RNBHM, summaries.mean_BHMV, precision="highest"))
