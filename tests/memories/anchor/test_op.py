"""Anchor attention against its paper in float64, and what its two-region cache promises."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.anchor.config import AnchorConfig, check
from lattice_jax.memories.anchor.op import anchor_attention
from lattice_jax.memories.anchor.places import find_places
from lattice_jax.memories.anchor.reference import visible
from lattice_jax.memories.anchor.state import anchor_slots, empty_cache
from lattice_jax.ops.documents import EMPTY
from lattice_jax.types import MARK_ANCHOR, MARK_PROTECTED, make_segment, whole_segment
from tests.contract.harness import quick_jit
from tests.memories.anchor import published
from tests.thorough import further

# the figure of the paper: words 0 to 2 and their anchor, two words and theirs, one word
EIGHT = np.array([0, 0, 0, 1, 0, 0, 1, 0], bool)
BARE = AnchorConfig(keep_bos=False)
HEADS, QUERIES, KEY, VALUE = 2, 4, 6, 5
step = quick_jit(anchor_attention, "config", "impl")


def mask_of(config, is_anchor_T, is_protected_T=None):
  """The mask of one document, as the op sees it."""
  segment = whole_segment(1, len(is_anchor_T)).replace(marks_BT=marks(is_anchor_T, is_protected_T))
  state = empty_cache(config, 1, 0, heads=1, key_dim=2, value_dim=2, dtype=jnp.dtype("float32"))
  return np.asarray(visible(config, find_places(config, state, segment)))[0]


def marks(is_anchor_T, is_protected_T=None):
  protected_T = np.zeros(len(is_anchor_T), bool) if is_protected_T is None else is_protected_T
  return jnp.asarray((is_anchor_T * MARK_ANCHOR + protected_T * MARK_PROTECTED)[None], jnp.int8)


def tokens(length, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(jnp.asarray(rng.normal(size=(1, length, heads, width)), jnp.float32)
               for heads, width in ((QUERIES, KEY), (HEADS, KEY), (HEADS, VALUE)))


def doubles(*arrays):
  return [np.asarray(x[0], np.float64) for x in arrays]


@pytest.mark.parametrize(("sees", "sums"), [(False, (1, 2, 3, 4, 2, 3, 3, 3)), (True, (1, 2, 3, 4, 2, 3, 4, 3))])
def test_the_figure_of_the_paper(sees, sums):
  mask_TT = mask_of(AnchorConfig(keep_bos=False, anchors_see_anchors=sees), EIGHT)
  assert tuple(mask_TT.sum(1)) == sums
  np.testing.assert_array_equal(mask_TT, published.mask(EIGHT, anchors_see_anchors=sees))
  if not sees:
    assert np.flatnonzero(mask_TT[6]).tolist() == [4, 5, 6]
  assert np.flatnonzero(mask_TT[7]).tolist() == [3, 6, 7] and np.flatnonzero(mask_TT[4]).tolist() == [3, 4]


@pytest.mark.parametrize("sees", [False, True])
def test_masks_of_random_texts_are_the_papers_and_no_row_is_empty(sees):
  for seed in range(20):
    rng = np.random.default_rng(seed)
    is_anchor_T, is_protected_T = rng.random((2, 30)) < [[0.3], [0.2]]
    config = AnchorConfig(keep_bos=False, anchors_see_anchors=sees, protected=30)
    mask_TT = mask_of(config, is_anchor_T, is_protected_T)
    want = published.mask(is_anchor_T, anchors_see_anchors=sees, is_protected_T=is_protected_T & ~is_anchor_T)
    np.testing.assert_array_equal(mask_TT, want)
    assert mask_TT.any(1).all()


def test_without_anchors_the_mask_is_causal_and_with_nothing_else_each_sees_itself():
  nothing, everything = np.zeros(9, bool), np.ones(9, bool)
  np.testing.assert_array_equal(mask_of(BARE, nothing), np.tri(9, dtype=bool))
  np.testing.assert_array_equal(mask_of(BARE, everything), np.eye(9, dtype=bool))


def test_the_first_token_is_an_anchor_under_keep_bos_and_segments_have_a_bound():
  is_anchor_T = np.zeros(12, bool)
  forced_T = np.isin(np.arange(12), (0, 4, 8))
  np.testing.assert_array_equal(mask_of(AnchorConfig(max_segment=4), is_anchor_T), published.mask(forced_T))


@pytest.mark.parametrize("impl", ["xla", "interpret"])
def test_outputs_are_those_of_the_paper_in_float64(impl):
  q, k, v = tokens(40)
  is_anchor_T = np.random.default_rng(1).random(40) < 0.2
  out, _ = anchor_attention(q, k, v, marks=marks(is_anchor_T), config=BARE, impl=impl)
  want = published.attention(*doubles(q, k, v), published.mask(is_anchor_T))
  np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sees", [False, True])
def test_deleting_closed_segments_changes_nothing_in_float64(sees):
  """The theorem itself, apart from our code: Algorithm 1 gives what attention under the mask gives."""
  q, k, v = doubles(*tokens(40))
  is_anchor_T = np.random.default_rng(2).random(40) < 0.2
  reduced, kept, _ = published.reduced(q, k, v, is_anchor_T, anchors_see_anchors=sees)
  whole = published.attention(q, k, v, published.mask(is_anchor_T, anchors_see_anchors=sees))
  np.testing.assert_allclose(reduced, whole, rtol=0, atol=1e-12)
  assert len(kept) == is_anchor_T.sum() + (39 - np.flatnonzero(is_anchor_T)[-1])


def test_what_was_deleted_has_no_gradient():
  q, k, v = tokens(8)

  def later(k, v):
    out, _ = anchor_attention(q, k, v, marks=marks(EIGHT), config=BARE, impl="xla")
    return jnp.sin(out[:, 7]).sum()  # the word after both segments

  d_k, d_v = jax.grad(later, argnums=(0, 1))(k, v)
  for d_x in (d_k, d_v):
    d_x_T = np.abs(np.asarray(d_x)).sum((0, 2, 3))
    assert not d_x_T[[0, 1, 2, 4, 5]].any() and d_x_T[[3, 6, 7]].all()


def test_after_every_token_the_cache_is_anchors_and_the_open_tail_at_their_positions():
  q, k, v = tokens(40)
  is_anchor_T = np.random.default_rng(3).random(40) < 0.2
  marks_BT, config = marks(is_anchor_T), AnchorConfig(keep_bos=False, max_segment=40)
  want, _, sizes = published.reduced(*doubles(q, k, v), is_anchor_T)
  state = empty_cache(config, 1, 40, heads=HEADS, key_dim=KEY, value_dim=VALUE, dtype=jnp.dtype("float32"))
  for t in range(40):
    here = slice(t, t + 1)
    out, state = step(q[:, here], k[:, here], v[:, here], state, marks=marks_BT[:, here], config=config, impl="xla")
    np.testing.assert_allclose(out[0, 0], want[t], rtol=1e-5, atol=1e-5)
    anchors = np.flatnonzero(is_anchor_T[:t + 1])
    tail = np.arange(anchors[-1] + 1 if len(anchors) else 0, t + 1)
    for region, places in ((state.anchors, anchors), (state.open, tail)):
      position_S = np.asarray(region.position_BHS)[0, 0]
      assert position_S[position_S != EMPTY].tolist() == places.tolist()
      np.testing.assert_array_equal(np.asarray(region.key_BHSK)[0, :, :len(places)], k[0, places].swapaxes(0, 1))
      assert not np.asarray(region.value_BHSV)[0, :, len(places):].any(), "what was deleted is still there"
    assert len(anchors) + len(tail) == sizes[t] == state.num_anchors_B[0] + state.age_B[0]


@pytest.mark.parametrize("config", [
  AnchorConfig(max_segment=7, reach=3, protected=4), AnchorConfig(max_segment=3, fanout=2, anchors_see_anchors=True),
  *further(AnchorConfig(max_segment=3, fanout=3))], ids=["reach", "fanout-sees", "fanout"])
def test_chunks_give_the_masked_forward_pass(config):
  length, cuts = 49, (0, 9, 10, 31, 40, 49)
  q, k, v = tokens(length)
  rng = np.random.default_rng(4)
  marks_BT = marks(*(rng.random((2, length)) < [[0.15], [0.1]]))
  whole, _ = step(q, k, v, marks=marks_BT, config=config, impl="reference")
  state = empty_cache(config, 1, length, heads=HEADS, key_dim=KEY, value_dim=VALUE, dtype=jnp.dtype("float32"))
  for start, stop in itertools.pairwise(cuts):
    here = slice(start, stop)
    out, state = step(q[:, here], k[:, here], v[:, here], state, marks=marks_BT[:, here], config=config, impl="xla")
    np.testing.assert_allclose(out, whole[:, here], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("fanout", [8, *further(2)])
def test_anchors_of_anchors_grow_with_the_logarithm(fanout):
  """100,000 tokens in segments of 10, a call of 1,000 at a time."""
  config, length, chunk = AnchorConfig(max_segment=10, fanout=fanout), 100_000, 1_000
  state = empty_cache(config, 1, length, heads=1, key_dim=1, value_dim=1, dtype=jnp.dtype("float32"))
  x = jnp.ones((1, chunk, 1, 1))
  for n in range(length // chunk):
    _, state = step(x, x, x, state, marks=jnp.zeros((1, chunk), jnp.int8), config=config, impl="xla")
    number_S, passed = np.asarray(state.number_BS)[0], int(state.num_anchors_B[0])
    seen = [number for number in number_S if number > 0 and alive(number, passed, fanout)]
    digits = np.base_repr(passed, fanout)
    assert len(seen) == sum(int(digit, fanout) for digit in digits), (n, seen)
    assert len(seen) <= (fanout - 1) * len(digits)
  assert passed == 9_999 and anchor_slots(config, length) == 1 + (fanout - 1) * len(np.base_repr(length, fanout))


def alive(number, passed, fanout):
  size = fanout
  while number % size == 0:
    size *= fanout
  return number // size == passed // size


def test_documents_of_a_row_do_not_see_one_another_and_padding_is_nothing():
  q, k, v = tokens(20)
  ids_BT, valid_BT = jnp.asarray(np.arange(20) >= 11, jnp.int32)[None], jnp.asarray(np.arange(20) < 17)[None]
  is_anchor_T = np.arange(20) % 4 == 2
  segment = make_segment(jnp.zeros((1, 20), jnp.int32), ids_BT=ids_BT, valid_BT=valid_BT)
  dirty = [jnp.where(valid_BT[..., None, None], x, jnp.nan) for x in (q, k, v)]

  def run(impl, q, k, v):
    out, _ = anchor_attention(
      q, k, v, None, segment.ids_BT, segment.valid_BT, marks=marks(is_anchor_T), config=BARE, impl=impl)
    return jnp.sin(out).sum(), out

  for impl in ("reference", "xla"):
    (_, out), gradients = jax.value_and_grad(
      lambda *xs, impl=impl: run(impl, *xs), argnums=(0, 1, 2), has_aux=True)(*dirty)
    for start, stop in ((0, 11), (11, 17)):
      alone = doubles(*(x[:, start:stop] for x in (q, k, v)))
      want = published.attention(*alone, published.mask(is_anchor_T[start:stop]))
      np.testing.assert_allclose(out[0, start:stop], want, rtol=1e-5, atol=1e-5)
    assert not np.asarray(out)[0, 17:].any()
    assert all(np.isfinite(d_x).all() and not np.asarray(d_x)[0, 17:].any() for d_x in gradients)


@pytest.mark.parametrize(("config", "sentence"), [
  (AnchorConfig(fanout=1), "model.anchor.fanout=1 would let every anchor take the place of all before it"),
  (AnchorConfig(fanout=4, reach=9), "are two bounds on the same anchors"),
])
def test_contradicting_fields_are_refused(config, sentence):
  with pytest.raises(ValueError, match=sentence):
    check(config)
