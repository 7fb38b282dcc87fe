"""The compressive cache: older tokens summed per code, as a count and a mean of values."""

from __future__ import annotations

import functools
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


def vq_memory(num_codes: int, read: Callable[..., Any] | None = None) -> FarMemory:
  """Transformer-VQ as an instance of `lattice_jax.ops.near_far`. read: None where nothing is read."""

  def summarize(tokens: Any, is_added_BC: jax.Array) -> Summary:
    count_BHM, sum_BHMV = _sums_by_code(num_codes, tokens.code_BSH, is_added_BC, tokens.value_BSHV)
    return Summary(count_BHM, sum_BHMV / jnp.maximum(count_BHM, 1.0)[..., None])

  return FarMemory(summarize, _merge, read, is_lossless=True, merge_all=_merge_all)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums_by_code(num_codes, code_BCH, is_added_BC, value_BCHV):
  """(fp32 number of added tokens, sum of their values) of every code. A value's gradient is its code's row."""
  one_hot_BCHM = jax.nn.one_hot(code_BCH, num_codes, dtype=value_BCHV.dtype) * is_added_BC[..., None, None]
  sum_BHMV = jnp.einsum("BCHM,BCHV->BHMV", one_hot_BCHM, value_BCHV, preferred_element_type=jnp.float32)
  return one_hot_BCHM.astype(jnp.float32).sum(1), sum_BHMV


def _sums_by_code_fwd(num_codes, code_BCH, is_added_BC, value_BCHV):
  # of the values the gradient needs only the dtype
  return _sums_by_code(num_codes, code_BCH, is_added_BC, value_BCHV), (code_BCH, is_added_BC, value_BCHV[:0])


def _sums_by_code_bwd(num_codes, saved, d_sums):
  code_BCH, is_added_BC, value = saved
  place_BHC1 = jnp.swapaxes(code_BCH, 1, 2)[..., None]
  d_value_BHCV = jnp.take_along_axis(d_sums[1], place_BHC1, axis=2, mode="promise_in_bounds")
  d_value_BCHV = jnp.where(is_added_BC[..., None, None], jnp.swapaxes(d_value_BHCV, 1, 2), 0)
  return None, None, d_value_BCHV.astype(value.dtype)


_sums_by_code.defvjp(_sums_by_code_fwd, _sums_by_code_bwd)


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
