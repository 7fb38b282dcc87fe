"""The compressive cache: tokens summed per code, and four ways to have it ready before every block.

A cache belongs to one document. Merging the cache of earlier tokens with that of later ones is associative, and one of
no tokens changes nothing, so the caches before all blocks are a prefix sum of the blocks' own.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY


@flax.struct.dataclass
class Cache:
  """count_BHM: fp32 tokens per code. mean_BHMV: fp32 mean of their values. document_B: EMPTY where there is none."""

  count_BHM: jax.Array
  mean_BHMV: jax.Array
  document_B: jax.Array


def summarize(code_BCH: jax.Array, value_BCHV: jax.Array, id_BC: jax.Array, num_codes: int) -> Cache:
  """The cache of some slots alone: those of their newest document, EMPTY ones left out."""
  newest_B = _last_document(id_BC)
  is_added_BC = (id_BC == newest_B[:, None]) & (id_BC != EMPTY)
  one_hot_BCHM = jax.nn.one_hot(code_BCH, num_codes, dtype=value_BCHV.dtype) * is_added_BC[..., None, None]
  count_BHM = one_hot_BCHM.astype(jnp.float32).sum(1)
  sum_BHMV = jnp.einsum("BCHM,BCHV->BHMV", one_hot_BCHM, value_BCHV, preferred_element_type=jnp.float32)
  return Cache(count_BHM, sum_BHMV / jnp.maximum(count_BHM, 1.0)[..., None], newest_B)


def merge(earlier: Cache, later: Cache) -> Cache:
  """The cache of both; of `later` alone where it holds another document."""
  is_later_empty_B = later.document_B == EMPTY
  is_kept_B = is_later_empty_B | (later.document_B == earlier.document_B)
  old_BHM = jnp.where(is_kept_B[..., None, None], earlier.count_BHM, 0.0)
  old_BHMV = jnp.where(is_kept_B[..., None, None, None], earlier.mean_BHMV, 0.0)
  count_BHM = old_BHM + later.count_BHM
  share_BHM = later.count_BHM / jnp.maximum(count_BHM, 1.0)
  # In this form a mean to which nothing is added stays as it is, to the last bit.
  mean_BHMV = old_BHMV + (later.mean_BHMV - old_BHMV) * share_BHM[..., None]
  return Cache(count_BHM, mean_BHMV, jnp.where(is_later_empty_B, earlier.document_B, later.document_B))


def _serial(start: Cache, blocks: Cache) -> tuple[Cache, Cache]:
  """One scan that carries the cache and emits it before every block."""
  return jax.lax.scan(lambda cache, block: (merge(cache, block), cache), start, blocks)


def _associative(start: Cache, blocks: Cache) -> tuple[Cache, Cache]:
  """A prefix sum of logarithmic depth."""
  joined = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, blocks)
  sums = jax.lax.associative_scan(merge, joined)
  return jax.tree.map(lambda x: x[-1], sums), jax.tree.map(lambda x: x[:-1], sums)


def _matmul(start: Cache, blocks: Cache) -> tuple[Cache, Cache]:
  """Every mean as one weighted sum over the blocks before: quadratic in the number of blocks, all in one product."""
  joined = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, blocks)
  num = joined.document_B.shape[0]
  place_N = jnp.arange(num)[:, None]
  newest_NB = jax.lax.cummax(jnp.where(joined.document_B != EMPTY, place_N, 0), axis=0)
  document_NB = jnp.take_along_axis(joined.document_B, newest_NB, axis=0)
  is_before_RN = place_N >= place_N.T
  is_same_RNB = document_NB[:, None] == joined.document_B[None]
  weight_RNB = (is_before_RN[..., None] & is_same_RNB).astype(jnp.float32)
  count_RBHM = jnp.einsum("RNB,NBHM->RBHM", weight_RNB, joined.count_BHM, precision="highest")
  share_RNBHM = weight_RNB[..., None, None] * joined.count_BHM[None] / jnp.maximum(count_RBHM, 1.0)[:, None]
  # as in `merge`, the mean of a code without tokens stays what it was at the start
  is_unused_RBHM = (count_RBHM == 0) & (weight_RNB[:, 0, :, None, None] > 0)
  share_RNBHM = share_RNBHM.at[:, 0].add(is_unused_RBHM)
  mean_RBHMV = jnp.einsum("RNBHM,NBHMV->RBHMV", share_RNBHM, joined.mean_BHMV, precision="highest")
  sums = Cache(count_RBHM, mean_RBHMV, document_NB)
  return jax.tree.map(lambda x: x[-1], sums), jax.tree.map(lambda x: x[:-1], sums)


# (cache before the first block, caches of the blocks stacked) → (cache after the last, caches before each)
REDUCTIONS: dict[str, Callable[[Cache, Cache], tuple[Cache, Cache]]] = {
  "serial": _serial,
  "matmul": _matmul,
  "associative": _associative,
}


def _last_document(id_BC: jax.Array) -> jax.Array:
  """The document of the last slot that holds a token, EMPTY where none does."""
  last_B = jnp.where(id_BC != EMPTY, jnp.arange(1, id_BC.shape[1] + 1), 0).max(1)
  newest_B = jnp.take_along_axis(id_BC, jnp.maximum(last_B - 1, 0)[:, None], 1)[:, 0]
  return jnp.where(last_B > 0, newest_B, EMPTY)
