"""The policy "sep" keeps what its definition keeps, however tokens arrive; "every" keeps evenly spaced tokens."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.convert import compress_caches
from lattice_jax.cache.policies import every
from lattice_jax.cache.policies.full import FullConfig
from lattice_jax.cache.policies.views import Partitions
from lattice_jax.cache.policy import make_policy
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.softmax.layer import SoftmaxAttention
from lattice_jax.memories.softmax.op import softmax_attention
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED
from tests.cache.sep_numpy import kept_positions
from tests.cache.streams import (
  HEADS,
  KEEP,
  LAG,
  LAGKV,
  LENGTH,
  ROWS,
  SINKS,
  as_they_come,
  at_once,
  marks,
  positions_of,
)
from tests.thorough import further

SEP = replace(LAGKV, policy="sep")


def assert_kept(cache, mark_BT):
  for row, length in enumerate(ROWS):
    is_separator_T = (mark_BT[row, :length] & MARK_ANCHOR) > 0
    want = kept_positions(is_separator_T.tolist(), sinks=SINKS, lag=LAG, keep=KEEP)
    assert positions_of(cache, row).tolist() == [want] * HEADS
    marks_HS = np.asarray(cache.mark_BHS[row, :, :len(want)])
    np.testing.assert_array_equal(marks_HS, np.tile(mark_BT[row, want], (HEADS, 1)))
    assert len(want) == make_policy(SEP).length_after(length)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_is_what_the_definition_keeps_however_tokens_arrive(seed):
  mark_BT = marks(seed)
  number_BN = ((mark_BT[:, SINKS:SINKS + 8 * LAG] & MARK_ANCHOR) > 0).reshape(len(ROWS), 8, LAG).sum(2)
  assert (number_BN > KEEP).any() and (number_BN < KEEP).any()
  for cache in (at_once(SEP, mark_BT=mark_BT), *(as_they_come(SEP, 5 * seed + n, mark_BT=mark_BT) for n in range(2))):
    assert_kept(cache, mark_BT)


def test_a_prompt_that_is_compressed_later_keeps_the_same():
  full = replace(LAGKV, policy="full", keep=0, full=FullConfig(records=("marks",)))
  stack = jax.tree.map(lambda leaf: leaf[None], as_they_come(full, 0))
  room = make_policy(SEP).length_after(LENGTH) + 1
  cache = jax.tree.map(lambda leaf: leaf[0], compress_caches(make_policy(SEP), room, {"": stack})[""])
  assert_kept(cache, marks())
  np.testing.assert_array_equal(cache.mark_BHS, at_once(SEP).mark_BHS[..., :room])
  other = compress_caches(make_policy(LAGKV), LENGTH, {"": stack})[""]
  assert other.mark_BHS.size == 0


@pytest.mark.parametrize("bits", [0, MARK_PROTECTED], ids=["no-mark", "other-mark"])
def test_without_separators_the_newest_of_a_partition_stay(bits):
  kept = positions_of(at_once(SEP, mark_BT=np.full_like(marks(), bits)), 0)[0].tolist()
  assert kept[SINKS:SINKS + KEEP] == [*range(SINKS + LAG - KEEP, SINKS + LAG)]


def test_the_marks_of_other_rows_do_not_count():
  mark_BT = marks().copy()
  mark_BT[1:] = MARK_ANCHOR
  mark_BT[2] = 0
  np.testing.assert_array_equal(
    positions_of(at_once(SEP, mark_BT=mark_BT), 0), positions_of(at_once(SEP, mark_BT=marks()), 0))


def test_attention_that_is_given_no_marks_is_refused():
  q, k, v = (jnp.zeros((1, 2, heads, 4)) for heads in (4, 2, 2))
  layer = SoftmaxAttention(AttentionConfig(heads=4, kv_heads=2, key_dim=4, value_dim=4), cache=SEP)
  for call in (
    lambda: softmax_attention(q, k, v, cache=SEP, max_len=8), lambda: layer.init(jax.random.key(0), k[:, :, 0])):
    with pytest.raises(ValueError, match=r"policy 'sep' keeps the tokens that are marked .* was given no marks"):
      jax.eval_shape(call)
  marks_BT = jnp.zeros((1, 2), jnp.int8)
  jax.eval_shape(lambda: softmax_attention(q, k, v, cache=SEP, max_len=8, marks=marks_BT))
  jax.eval_shape(lambda: softmax_attention(q, k, v, cache=SEP, window=1))


@pytest.mark.parametrize("keep", [1, 3, LAG, *further(*(keep for keep in range(2, LAG) if keep != 3))])
def test_every_keeps_evenly_spaced_tokens(keep):
  kept = positions_of(at_once(replace(LAGKV, policy="every", keep=keep)), 0)
  want = [SINKS + index * LAG // keep for index in range(keep)]
  assert kept[:, SINKS:SINKS + keep].tolist() == [want] * HEADS


def test_every_spreads_fewer_and_more_tokens_than_its_budget():
  lag, keep = 16, 4
  shape = 1, 1, 2, lag
  score_BHNL = every.score(None, Partitions(
    key_BHNLK=None, value_BHNLV=None, position_BHNL=jnp.zeros(shape, jnp.int32), layer=jnp.int32(0), keep=keep))
  best_first_L = np.argsort(-score_BHNL[0, 0, 0], stable=True)
  assert best_first_L.tolist() == [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15]
