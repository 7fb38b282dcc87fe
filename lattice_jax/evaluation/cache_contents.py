"""What a compressed cache still holds: how many tokens, how much of an answer, and which positions, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import jax
import numpy as np

from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.sharding import tree_bytes

_MAP_WIDTH = 128  # at most so many stretches of the prompt in a map


def slots_in_use(caches: Sequence[KVCache]) -> int:
  """The mean over rows and layers; with prompts of equal length only policies that decide online make them differ."""
  return round(float(np.mean([np.asarray(cache.length_B) for cache in caches])))


def row_bytes(caches: Sequence[KVCache]) -> int:
  """Bytes that a row uses of all layers, the mean of rows: of slots that hold a token, and of what has no slots.

  The first are keys, values, positions, and marks and attention received where a policy records them; the second its
  last queries and the summary of what left.
  """
  total = 0
  for cache in caches:
    slots = sum(leaf.nbytes for leaf in (
      cache.key_BHSK, cache.value_BHSV, cache.position_BHS, cache.mark_BHS, cache.mass_BHS))
    whole = cache.query_BWQK.nbytes + tree_bytes(cache.summary)
    rows, in_use = cache.length_B.shape[1], float(np.asarray(cache.length_B).mean())
    total += (slots * in_use / cache.num_slots + whole) / rows
  return round(total)


def needle_kept(caches: Sequence[KVCache], spans: Sequence[tuple[int, int]]) -> np.ndarray:
  """For each row, the share of positions [start, stop) that are still cached, averaged over layers and heads."""
  shares = []
  for positions_LBHS in _positions(caches):
    shares.append([[
      np.isin(np.arange(start, stop), positions_LBHS[layer, row, head]).mean()
      for layer in range(positions_LBHS.shape[0]) for head in range(positions_LBHS.shape[2])]
      for row, (start, stop) in enumerate(spans)])
  return np.concatenate(shares, axis=1).mean(axis=1)


def kept_map(caches: Sequence[KVCache], length: int) -> np.ndarray:
  """The share kept of each stretch of the first row's prompt: [layers, heads, stretches], layers in their order."""
  edges = np.linspace(0, length, min(_MAP_WIDTH, length) + 1)
  blocks = [[[
    np.histogram(positions_LBHS[layer, 0, head], edges)[0] for head in range(positions_LBHS.shape[2])]
    for layer in range(positions_LBHS.shape[0])] for positions_LBHS in _positions(caches)]
  sizes = np.histogram(np.arange(length), edges)[0]
  return np.stack(blocks, axis=1).reshape(-1, *np.shape(blocks)[2:]) / sizes


def write_map(folder: Path, cache: str, length: int, shares: np.ndarray) -> None:
  path = map_path(folder, cache, length)
  path.parent.mkdir(parents=True, exist_ok=True)
  np.save(path, shares.astype(np.float16))


def map_path(folder: Path, cache: str, length: int) -> Path:
  """A different path for each cache, from which `cache_of_map` recovers the cache's name."""
  return folder / "kept" / f"{length}_{quote(cache, safe='=,')}.npy"


def cache_of_map(path: Path) -> str:
  return unquote(path.name.partition("_")[2].removesuffix(".npy"))


def _positions(caches: Sequence[KVCache]) -> list[np.ndarray]:
  """For every block of the pattern [layers, B, H, S]; -1 where a slot is not in use."""
  def used(cache: KVCache) -> np.ndarray:
    positions_LBHS, length_LB = jax.device_get((cache.position_BHS, cache.length_B))
    return np.where(np.arange(positions_LBHS.shape[-1]) < length_LB[..., None, None], positions_LBHS, -1)

  return [used(cache) for cache in caches]
