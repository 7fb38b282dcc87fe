"""Random keys and values fed to a cache, in one call or as they come, through two compiled programs a policy."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.compact import compact
from lattice_jax.cache.kv_cache import CacheView, KVCache, empty_cache
from lattice_jax.cache.policies.snapkv import SnapKVConfig
from lattice_jax.cache.policy import Policy, make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED, make_segment
from tests.contract.harness import quick_jit

HEADS, QUERIES, KEY, VALUE = 2, 4, 6, 5
SINKS, LAG, KEEP = 3, 8, 3
LENGTH, CALL = 75, 13  # tokens of the longest row, and of a call at most
ROWS = (LENGTH, 41, 18, 2)  # tokens of each row: several partitions, two, none complete, fewer than the sinks
LAGKV = CacheConfig(policy="lagkv", sinks=SINKS, lag=LAG, keep=KEEP, snapkv=SnapKVConfig(observe=4, pool=3))
MODEL = ModelConfig(attention=AttentionConfig(heads=QUERIES, kv_heads=HEADS, key_dim=KEY, value_dim=VALUE))


@functools.cache
def tokens(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Queries, keys and values of all rows; values have an offset and a scale for each channel."""
  rng = np.random.default_rng(seed)
  q, k, v = (
    rng.normal(size=(len(ROWS), LENGTH, heads, width)).astype(np.float32)
    for heads, width in ((QUERIES, KEY), (HEADS, KEY), (HEADS, VALUE)))
  return q, k, v * rng.uniform(0.1, 9, VALUE).astype(np.float32) + rng.normal(size=VALUE).astype(np.float32)


@functools.cache
def marks(seed: int = 0) -> np.ndarray:
  """Marks of all rows, [B, T] int8; rows differ in how many they have, and one partition has none."""
  rng = np.random.default_rng(seed)
  shape = len(ROWS), LENGTH
  is_anchor_BT = rng.random(shape) < rng.uniform(0.1, 0.7, len(ROWS))[:, None]
  is_anchor_BT[0, SINKS + LAG:SINKS + 2 * LAG] = False
  return MARK_ANCHOR * is_anchor_BT.astype(np.int8) | MARK_PROTECTED * (rng.random(shape) < 0.3).astype(np.int8)


@functools.cache
def compiled(policy: Policy) -> Any:
  """(cache, q, k, v, segment) → (output, cache) of one layer."""
  def call(cache, q, k, v, segment):
    out, view = read_and_append(policy, q, k, v, CacheView.alone(cache), segment, impl="xla")
    stack = compact(policy, {"": view.stack}, call_len=q.shape[1])[""]
    return out, jax.tree.map(lambda leaf: leaf[0], stack)

  return quick_jit(call)


def fresh(policy: Policy, rows: int = len(ROWS)) -> KVCache:
  return empty_cache(MODEL.attention, policy, rows, LENGTH, jnp.dtype("float32"))


def feed(
  policy: Policy, cache: KVCache, start_B: np.ndarray, count_B: np.ndarray, length: int, stream: Any = None,
  mark_BT: np.ndarray | None = None,
) -> tuple[np.ndarray, KVCache]:
  """Row b's tokens [start, start + count) in a call of `length` tokens; what is left of the call is invalid."""
  index_BT = start_B[:, None] + np.arange(length)
  valid_BT = np.arange(length) < count_B[:, None]
  row_B1, here_BT = np.arange(len(start_B))[:, None], np.minimum(index_BT, LENGTH - 1)
  q, k, v = (x[row_B1, here_BT] for x in stream or tokens())
  mark_BT = (marks() if mark_BT is None else mark_BT)[row_B1, here_BT]
  segment = make_segment(index_BT.astype(np.int32), valid_BT=valid_BT, marks_BT=mark_BT)
  out, cache = compiled(policy)(cache, *jax.tree.map(jnp.asarray, (q, k, v, segment)))
  return np.asarray(out), cache


def at_once(
  config: CacheConfig, stream: Any = None, fold: Any = None, mark_BT: np.ndarray | None = None) -> KVCache:
  """All rows in one call."""
  policy = replace(make_policy(config), fold=fold)
  zero_B = np.zeros(len(ROWS), np.int64)
  return feed(policy, fresh(policy), zero_B, np.array(ROWS), LENGTH, stream, mark_BT)[1]


def as_they_come(
  config: CacheConfig, seed: int, stream: Any = None, fold: Any = None, mark_BT: np.ndarray | None = None) -> KVCache:
  """Every row in pieces of its own random lengths."""
  policy, rng = replace(make_policy(config), fold=fold), np.random.default_rng(seed)
  cache, start_B, end_B = fresh(policy), np.zeros(len(ROWS), np.int64), np.array(ROWS)
  while (start_B < end_B).any():
    count_B = np.minimum(rng.integers(0, CALL + 1, len(ROWS)), end_B - start_B)
    _, cache = feed(policy, cache, start_B, count_B, CALL, stream, mark_BT)
    start_B += count_B
  return cache


def positions_of(cache: KVCache, row: int) -> np.ndarray:
  """Positions that each head of a row holds, [H, length]."""
  length = int(cache.length_B[row])
  position_HS = np.asarray(cache.position_BHS[row])
  assert (position_HS[:, length:] == -1).all() and (position_HS[:, :length] >= 0).all()
  return position_HS[:, :length]
