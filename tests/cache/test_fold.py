"""A fold is handed every token that leaves a cache, once: with what is kept they are all that was read.

Keys and values are whole numbers, whose sums float32 holds exactly; they are compared with those of float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.convert import compress_caches
from lattice_jax.cache.policies.registry import COMPRESSING
from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.cache.policy import make_policy
from lattice_jax.ops.attention.window_cache import empty_window, shift_tokens
from lattice_jax.ops.documents import document_after, document_runs
from tests.cache.streams import (
  CALL,
  HEADS,
  KEY,
  LAGKV,
  LENGTH,
  ROWS,
  VALUE,
  as_they_come,
  at_once,
  feed,
  fresh,
)
from tests.thorough import further

RING = replace(LAGKV, policy="window", window=WindowConfig(window=9), keep=0)
CONFIGS = {"window": RING} | {name: replace(LAGKV, policy=name) for name in COMPRESSING}


@dataclass(frozen=True)
class Sums:
  """Number, positions, keys and values of what left, added up."""

  def init_summary(self, batch, heads, key_dim, value_dim):
    return jnp.zeros((batch, heads, 2 + key_dim + value_dim), jnp.float32)

  def add(self, summary, evicted):
    return summary + total(evicted.key_BHSK, evicted.value_BHSV, evicted.position_BHS, evicted.leaves_BHS, np=jnp)


def total(key_BHSK, value_BHSV, position_BHS, is_counted_BHS, np=np):
  columns = np.concatenate([np.ones_like(key_BHSK[..., :1]), position_BHS[..., None], key_BHSK, value_BHSV], axis=-1)
  return np.where(is_counted_BHS[..., None], columns, 0).sum(2)


@functools.cache
def whole_numbers():
  rng = np.random.default_rng(3)
  shapes = (len(ROWS), LENGTH, 2 * HEADS, KEY), (len(ROWS), LENGTH, HEADS, KEY), (len(ROWS), LENGTH, HEADS, VALUE)
  return tuple(rng.integers(-9, 10, shape).astype(np.float32) for shape in shapes)


def assert_nothing_is_lost(cache):
  is_used_BHS = np.arange(cache.num_slots) < np.asarray(cache.length_B)[:, None, None]
  held = np.float64(total(*map(np.asarray, (cache.key_BHSK, cache.value_BHSV, cache.position_BHS)), is_used_BHS))
  _, k, v = (np.moveaxis(x, 1, 2).astype(np.float64) for x in whole_numbers())
  index_T = np.arange(LENGTH)
  read = total(k, v, np.broadcast_to(index_T, k.shape[:3]), (index_T < np.array(ROWS)[:, None])[:, None])
  np.testing.assert_array_equal(np.float64(cache.summary) + held, read)
  assert (np.asarray(cache.summary)[0, :, 0] > 0).all()


@pytest.mark.parametrize("policy", CONFIGS)
def test_what_left_and_what_is_kept_are_all_that_was_read(policy):
  assert_nothing_is_lost(as_they_come(CONFIGS[policy], 0, whole_numbers(), Sums()))


@pytest.mark.parametrize("policy", ["window", "lagkv"])
def test_one_call_and_a_compressed_prompt_hand_over_the_same_tokens(policy):
  config = CONFIGS[policy]
  streamed, once = (read(whole_numbers()) for read in (
    lambda stream: as_they_come(config, 0, stream, Sums()), lambda stream: at_once(config, stream, Sums())))
  np.testing.assert_array_equal(streamed.summary, once.summary)
  prompt = at_once(replace(LAGKV, policy="full", keep=0), whole_numbers())
  stacks = {"": jax.tree.map(lambda leaf: leaf[None], prompt)}
  compressed = compress_caches(replace(make_policy(config), fold=Sums()), LENGTH, stacks)[""]
  np.testing.assert_array_equal(compressed.summary[0], once.summary)


@pytest.mark.parametrize("policy", ["window", "lagkv"])
def test_a_document_takes_its_summary_with_it(policy):
  folding, zero_B = replace(make_policy(CONFIGS[policy]), fold=Sums()), np.zeros(len(ROWS), np.int64)
  cache, count_B = as_they_come(CONFIGS[policy], 0, whole_numbers(), Sums()), np.array([5, 0, 13, 3])
  ended = cache.replace(document_B=cache.document_B + 1)  # the next call's document is another
  _, after = feed(folding, ended, zero_B, count_B, CALL, whole_numbers())
  _, new = feed(folding, fresh(folding), zero_B, count_B, CALL, whole_numbers())
  for row in (0, 2, 3):
    np.testing.assert_array_equal(after.summary[row], new.summary[row])
  np.testing.assert_array_equal(after.summary[1], cache.summary[1])


def test_a_cache_without_a_fold_carries_nothing():
  assert fresh(make_policy(LAGKV)).summary is None
  # checkpoints hold such windows, and load only into a tree of the same fields
  assert [*vars(empty_window(1, 5, HEADS, KEY, VALUE, jnp.dtype("float32")))] == [
    "key_BSHK", "value_BSHV", "id_BS", "document_B"]


@pytest.mark.parametrize(
  "pieces", [*further([23], [1] * 23), [4, 9, 0, 10]], ids=["one call", "token by token", "uneven"])
def test_the_window_of_a_layer_hands_over_what_leaves_of_the_last_document(pieces):
  ids_BT, valid_BT = np.array([[0] * 23, [0] * 4 + [1] * 19, [0] * 2 + [1] * 21]), np.ones((3, 23), bool)
  valid_BT[2, 20:] = False
  _, k, v = (jnp.asarray(x[:3, :23]) for x in whole_numbers())
  cache = empty_window(3, 5, HEADS, KEY, VALUE, jnp.dtype("float32"), fold=Sums())
  start = 0
  for length in pieces:
    here = slice(start, start := start + length)
    ids, valid = jnp.asarray(ids_BT[:, here]), jnp.asarray(valid_BT[:, here])
    if length:
      run_BT, document_B = document_runs(ids, valid, cache.document_B), document_after(ids, valid, cache.document_B)
      cache = shift_tokens(cache, k[:, here], v[:, here], run_BT, document_B, fold=Sums())
  first_B, end_B = np.array([0, 4, 2]), np.array([23, 23, 20])
  place_BT = np.broadcast_to(np.arange(23), (3, 23))
  leaves_BHT = ((place_BT >= first_B[:, None]) & (place_BT < end_B[:, None] - 5))[:, None]
  position_BHT = np.broadcast_to((place_BT - first_B[:, None])[:, None], (3, HEADS, 23))
  want = total(*(np.moveaxis(np.float64(x), 1, 2) for x in (k, v)), position_BHT, leaves_BHT)
  np.testing.assert_array_equal(cache.summary, want)
  np.testing.assert_array_equal(cache.seen_B, end_B - first_B)
