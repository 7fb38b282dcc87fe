"""Recent tokens exactly, older ones through a summary: a small memory of its own against float64, token by token.

The memory is attention with a window whose older tokens are one pseudo-token a head, the running mean of their keys and
values, which counts as much as all of them.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops import near_far
from lattice_jax.ops.documents import EMPTY, keep_only
from tests.contract.harness import quick_jit

ROWS, LENGTH, HEADS, KEY, VALUE, WINDOW = 4, 23, 2, 3, 4, 5
# Of every row, the document of each token; the state has read documents 0, 0, 3 and 0.
IDS = np.array([[0] * 23, [0] * 4 + [2] * 12 + [0] * 7, [3] * 17 + [0] * 6, [0] * 23])
NUM_VALID = np.array([23, 23, 17, 0])
VALID = np.arange(LENGTH) < NUM_VALID[:, None]


@flax.struct.dataclass
class Mean:
  """count_BH: older tokens. key_BHK, value_BHV: their means."""

  count_BH: jax.Array
  key_BHK: jax.Array
  value_BHV: jax.Array


def summarize(tokens, is_added_BC):
  count_B1 = is_added_BC.sum(1, keepdims=True).astype(jnp.float32)
  weight_BC = is_added_BC / jnp.maximum(count_B1, 1)
  means = (jnp.einsum("BC,BCHK->BHK", weight_BC, x, precision="highest") for x in tokens)
  return Mean(jnp.broadcast_to(count_B1, (count_B1.shape[0], HEADS)), *means)


def merge(earlier, later):
  count_BH = earlier.count_BH + later.count_BH
  share_BH1 = (later.count_BH / jnp.maximum(count_BH, 1))[..., None]
  return Mean(
    count_BH, earlier.key_BHK + (later.key_BHK - earlier.key_BHK) * share_BH1,
    earlier.value_BHV + (later.value_BHV - earlier.value_BHV) * share_BH1)


def read(q_BCHK, near, is_seen_BCS, mean, sees_far_BC):
  key_BSHK, value_BSHV = near
  score_BHCS = jnp.einsum("BCHK,BSHK->BHCS", q_BCHK, key_BSHK, precision="highest")
  score_BHCS = jnp.where(is_seen_BCS[:, None], score_BHCS, -1e30)
  if mean is not None:
    far_BCH = jnp.einsum("BCHK,BCHK->BCH", q_BCHK, mean.key_BHK, precision="highest")
    far_BCH += jnp.log(jnp.maximum(mean.count_BH, 1))
    far_BCH = jnp.where(sees_far_BC[..., None] & (mean.count_BH > 0), far_BCH, -1e30)
    score_BHCS = jnp.concatenate([score_BHCS, jnp.swapaxes(far_BCH, 1, 2)[..., None]], -1)
  weight_BHCS = jax.nn.softmax(score_BHCS)
  slots = value_BSHV.shape[1]
  out_BCHV = jnp.einsum("BHCS,BSHV->BCHV", weight_BHCS[..., :slots], value_BSHV, precision="highest")
  return out_BCHV if mean is None else out_BCHV + jnp.swapaxes(weight_BHCS[..., slots:], 1, 2) * mean.value_BHV


MEMORY = near_far.FarMemory(summarize, merge, read)


@functools.cache
def scene():
  """Tokens, and a state that has read some: two, nine, nine and four."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  empty = near_far.empty_state(
    ROWS, WINDOW, (jnp.zeros((HEADS, KEY)), jnp.zeros((HEADS, VALUE))),
    Mean(jnp.zeros(HEADS), jnp.zeros((HEADS, KEY)), jnp.zeros((HEADS, VALUE))))
  past = normal(ROWS, 9, HEADS, KEY), (normal(ROWS, 9, HEADS, KEY), normal(ROWS, 9, HEADS, VALUE))
  valid = jnp.arange(9) < jnp.array([[2], [9], [9], [4]])
  ids = jnp.broadcast_to(jnp.asarray(IDS[:, :1]), (ROWS, 9))
  state = near_far.attend(MEMORY, *past, empty, ids, valid, block_len=4)[1]
  return normal(ROWS, LENGTH, HEADS, KEY), (normal(ROWS, LENGTH, HEADS, KEY), normal(ROWS, LENGTH, HEADS, VALUE)), state


def floats(state):
  return state.near.tokens, state.far.summary.key_BHK, state.far.summary.value_BHV


def with_floats(state, parts):
  tokens, key_BHK, value_BHV = parts
  summary = state.far.summary.replace(key_BHK=key_BHK, value_BHV=value_BHV)
  return near_far.NearFarState(state.near.replace(tokens=tokens), state.far.replace(summary=summary))


def projection(out, state):
  return jnp.sin(3 * out).sum() + sum(jnp.sin(2 * leaf).sum() for leaf in jax.tree.leaves(floats(state)))


@functools.cache
def compiled(block_len, reduction, cuts, use_far):
  """(q, tokens, floats of the state, valid) → outputs, last state and all gradients of a call that is cut at `cuts`."""

  def total(q, tokens, parts, valid):
    state, outs = with_floats(scene()[2], parts), []
    for start, stop in zip((0, *cuts), (*cuts, LENGTH), strict=True):
      part = jax.tree.map(lambda x: x[:, start:stop], (q, tokens))  # noqa: B023
      out, state = near_far.attend(
        MEMORY, *part, state, jnp.asarray(IDS)[:, start:stop], valid[:, start:stop], block_len=block_len,
        reduction=reduction, use_far=use_far)
      outs.append(out)
    out = jnp.concatenate(outs, 1)
    return projection(out, state), (out, state)

  return quick_jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))


def run(block_len, reduction, cuts, use_far=True, poison=0.0):
  """One call on the scene, `poison` added to all that is invalid."""
  q, tokens, state = scene()
  q, tokens = jax.tree.map(lambda x: jnp.where(VALID[..., None, None], x, x + poison), (q, tokens))
  grads, (out, state) = compiled(block_len, reduction, cuts, use_far)(q, tokens, floats(state), jnp.asarray(VALID))
  return out, state, grads


def by_definition(q, tokens, state, use_far):
  """numpy, float64: each token is compared with all that its row remembers, then the window moves by one."""
  q, (k, v), (window_k, window_v), mean = jax.tree.map(
    np.float64, (q, tokens, state.near.tokens, state.far.summary))
  out, last = np.zeros((ROWS, LENGTH, HEADS, VALUE)), []
  for row in range(ROWS):
    used = np.asarray(state.near.id_BS[row]) != EMPTY
    near = [(key, value) for key, value, is_used in zip(window_k[row], window_v[row], used, strict=True) if is_used]
    count, far_key, far_value = mean.count_BH[row, 0], mean.key_BHK[row], mean.value_BHV[row]
    document = int(state.far.document_B[row])
    for t in range(NUM_VALID[row]):
      if IDS[row, t] != document:
        near, count, far_key, far_value, document = [], 0, 0 * far_key, 0 * far_value, IDS[row, t]
      seen = [*near, (k[row, t], v[row, t])]
      score = [np.einsum("HK,HK->H", q[row, t], key) for key, _ in seen]
      values = [value for _, value in seen]
      if count and use_far:
        score.append(np.einsum("HK,HK->H", q[row, t], far_key) + np.log(count))
        values.append(far_value)
      weight = np.exp(np.stack(score))
      out[row, t] = np.einsum("SH,SHV->HV", weight / weight.sum(0), np.stack(values))
      near = seen
      if len(near) > WINDOW:
        (key, value), *near = near
        if use_far:
          count += 1
          far_key, far_value = far_key + (key - far_key) / count, far_value + (value - far_value) / count
    last.append((near, count, far_key, far_value, document))
  return out, last


# Few ways to run, since each is compiled with its gradients.
WAYS = {"whole": (4, "serial", ()), "input_scan": (7, "input_scan", ()), "cut": (30, "associative", (9,))}


@pytest.mark.parametrize(("block_len", "reduction", "cuts", "use_far"), [
  *((*way, True) for way in WAYS.values()), (4, "input_scan", (), False)])
def test_a_second_memory_equals_its_definition_in_float64(block_len, reduction, cuts, use_far):
  q, tokens, state = scene()
  out, after, _ = run(block_len, reduction, cuts, use_far)
  want_out, rows = by_definition(q, tokens, state, use_far)
  np.testing.assert_allclose(out, want_out, atol=2e-6)
  for row, (near, count, far_key, far_value, document) in enumerate(rows):
    assert after.far.document_B[row] == document
    used = np.asarray(after.near.id_BS[row]) != EMPTY
    assert used.sum() == len(near) and (np.asarray(after.near.id_BS[row])[used] == document).all()
    for slot, want in zip(np.flatnonzero(used), near, strict=True):
      np.testing.assert_allclose(after.near.tokens[0][row, slot], want[0], rtol=1e-6)
      np.testing.assert_allclose(after.near.tokens[1][row, slot], want[1], rtol=1e-6)
    np.testing.assert_array_equal(after.far.summary.count_BH[row], count)
    np.testing.assert_allclose(after.far.summary.key_BHK[row], far_key, atol=2e-6)
    np.testing.assert_allclose(after.far.summary.value_BHV[row], far_value, atol=2e-6)


def test_gradients_are_those_of_differences_in_float64():
  q, tokens, state = scene()
  parts = floats(state)
  grads = run(*WAYS["whole"])[2]
  rng = np.random.default_rng(1)

  def total(amount, direction):
    q_moved, tokens_moved, parts_moved = jax.tree.map(
      lambda x, d: np.float64(x) + amount * d, (q, tokens, parts), direction)
    out, rows = by_definition(q_moved, tokens_moved, with_floats(state, parts_moved), True)
    means = sum(np.sin(2 * far).sum() for row in rows for far in row[2:4])
    return np.sin(3 * out).sum() + means + sum(np.sin(2 * x).sum() for row in rows for pair in row[0] for x in pair)

  for picked in range(6):  # every array alone: queries, keys, values, window keys and values together with the means
    leaves, tree = jax.tree.flatten((q, tokens, parts))
    direction = tree.unflatten(
      [rng.normal(size=x.shape) * (place == picked) for place, x in enumerate(leaves)])
    # what stands in an empty slot is no input
    slots = np.asarray(state.near.id_BS) != EMPTY
    near = tuple(d * slots[..., None, None] for d in direction[2][0])
    held = np.asarray(state.far.summary.count_BH > 0)[..., None]
    direction = (*direction[:2], (near, *(d * held for d in direction[2][1:])))
    slope = sum((np.float64(g) * d).sum() for g, d in zip(*map(jax.tree.leaves, (grads, direction)), strict=True))
    want = (total(1e-4, direction) - total(-1e-4, direction)) / 2e-4
    assert abs(slope - want) <= 2e-4 * max(abs(want), 1), picked


@pytest.mark.parametrize("way", ["input_scan", "cut"])
def test_any_split_and_any_reduction_give_the_same_outputs_states_and_gradients(way):
  jax.tree.map(
    lambda got, want: np.testing.assert_allclose(got, want, atol=1e-5), run(*WAYS[way]), run(*WAYS["whole"]))


@pytest.mark.parametrize("way", ["whole", "input_scan"])
def test_what_stands_at_invalid_tokens_changes_nothing(way):
  jax.tree.map(np.testing.assert_array_equal, run(*WAYS[way], poison=np.nan), run(*WAYS[way]))


def test_a_reduction_that_a_memory_lacks_is_refused():
  q, tokens, state = scene()
  with pytest.raises(ValueError, match="reduction='matmul' needs a memory with merge_all; use one of serial, assoc"):
    near_far.attend(
      MEMORY, q, tokens, state, jnp.asarray(IDS), jnp.asarray(VALID), block_len=4, reduction="matmul")


def test_other_reductions_are_refused():
  q, tokens, state = scene()
  with pytest.raises(ValueError, match="reduction='sum' is not one of serial, matmul, associative, input_scan"):
    near_far.attend(MEMORY, q, tokens, state, jnp.asarray(IDS), jnp.asarray(VALID), block_len=4, reduction="sum")


NUM_ANCHORS = 2


def newest_anchors(tokens, is_anchor_BS):
  """The last of them and which places hold one; empty places are zeros."""
  pads = jax.tree.map(lambda x: jnp.zeros_like(x[:, :1]).repeat(NUM_ANCHORS, 1), (tokens, is_anchor_BS))
  tokens, is_anchor_BS = jax.tree.map(lambda pad, x: jnp.concatenate([pad, x], 1), pads, (tokens, is_anchor_BS))
  place_BS = jnp.where(is_anchor_BS, jnp.arange(is_anchor_BS.shape[1]), -1)
  chosen_BA = jnp.argsort(place_BS, axis=1)[:, -NUM_ANCHORS:]
  picked, is_used_BA = jax.tree.map(lambda x: jax.vmap(lambda row, at: row[at])(x, chosen_BA), (tokens, is_anchor_BS))
  return keep_only(is_used_BA, picked), is_used_BA


def read_with_anchors(q_BCHK, near, is_seen_BCS, anchors, sees_far_BC):
  (key_BSHK, value_BSHV, _), ((key_BCAHK, value_BCAHV, _), is_used_BCA) = near, anchors
  near_BHCS = jnp.where(is_seen_BCS[:, None], jnp.einsum("BCHK,BSHK->BHCS", q_BCHK, key_BSHK), -1e30)
  is_seen_BCA = is_used_BCA & sees_far_BC[..., None]
  far_BHCA = jnp.where(is_seen_BCA[:, None], jnp.einsum("BCHK,BCAHK->BHCA", q_BCHK, key_BCAHK), -1e30)
  near_BHCS, far_BHCA = jnp.split(
    jax.nn.softmax(jnp.concatenate([near_BHCS, far_BHCA], -1)), [near_BHCS.shape[-1]], axis=-1)
  return jnp.einsum("BHCS,BSHV->BCHV", near_BHCS, value_BSHV) + jnp.einsum(
    "BHCA,BCAHV->BCHV", far_BHCA, value_BCAHV)


ANCHORS = near_far.FarMemory(
  summarize=lambda tokens, is_added_BC: newest_anchors(tokens, is_added_BC & tokens[2]),
  merge=lambda *both: newest_anchors(*jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *both)),
  read=read_with_anchors)


@pytest.mark.parametrize(("block_len", "reduction", "cut"), [(4, "associative", LENGTH), (7, "input_scan", 9)])
def test_anchors_are_a_memory_too(block_len, reduction, cut):
  """The last marked tokens beyond the window are kept as they are."""
  q, (k, v), _ = scene()
  marks = jnp.asarray(np.random.default_rng(2).random((ROWS, LENGTH)) < 0.3)
  token = jnp.zeros((HEADS, KEY)), jnp.zeros((HEADS, VALUE)), jnp.zeros((), bool)
  far = jax.tree.map(lambda x: jnp.zeros((NUM_ANCHORS, *x.shape), x.dtype), token), jnp.zeros(NUM_ANCHORS, bool)
  state, outs = near_far.empty_state(ROWS, WINDOW, token, far), []
  for part in (slice(0, cut), slice(cut, LENGTH)):
    if part.start < part.stop:
      out, state = quick_jit(functools.partial(near_far.attend, ANCHORS, block_len=block_len, reduction=reduction))(
        *jax.tree.map(lambda x: x[:, part], (q, (k, v, marks))), state,  # noqa: B023
        jnp.asarray(IDS)[:, part], jnp.asarray(VALID)[:, part])
      outs.append(out)
  for row, t in np.ndindex(ROWS, LENGTH):
    start = next(s for s in range(t, -1, -1) if s == 0 or IDS[row, s] != IDS[row, s - 1])
    older = [s for s in range(start, t - WINDOW) if marks[row, s]][-NUM_ANCHORS:]
    seen = [*older, *range(max(start, t - WINDOW), t + 1)]
    score_SH = np.einsum("HK,SHK->SH", np.float64(q[row, t]), np.float64(k[row, jnp.array(seen)]))
    weight_SH = np.exp(score_SH) / np.exp(score_SH).sum(0) * VALID[row, t]
    want = np.einsum("SH,SHV->HV", weight_SH, np.float64(v[row, jnp.array(seen)]))
    np.testing.assert_allclose(jnp.concatenate(outs, 1)[row, t], want, atol=3e-6)
