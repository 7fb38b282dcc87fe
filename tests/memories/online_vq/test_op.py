"""Online vector-quantised attention against its equations in numpy, and what they imply."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.online_vq.op import empty_state, online_vq
from lattice_jax.memories.online_vq.rule import num_codes
from tests.contract.harness import quick_jit
from tests.memories.online_vq import published
from tests.thorough import further

LENGTH, HEADS, KEY, VALUE = 22, 2, 5, 3


def make_tokens(seed=0, length=LENGTH, rows=1):
  rng = np.random.default_rng(seed)
  q, k, v = (rng.normal(size=(rows, length, HEADS, width)) for width in (KEY, KEY, VALUE))
  return 2 * q, k / np.linalg.norm(k, axis=-1, keepdims=True), v


def call(tokens, impl, codes, chunk_len, growth="plateau", ids=None, valid=None, state=None):
  dtype = tokens[0].dtype
  if state is None:
    state = empty_state(len(tokens[0]), HEADS, codes, chunk_len, KEY, VALUE, token_dtype=dtype, dtype=dtype)
  return online_vq(*tokens, state, ids, valid, codes=codes, chunk_len=chunk_len, growth=growth, impl=impl)


run = quick_jit(call, "impl", "codes", "chunk_len", "growth")


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize(
  ("codes", "chunk_len", "growth"),
  [(7, 4, "plateau"), (7, 5, "full"), *further((1, 1, "plateau"), (3, LENGTH, "plateau"), (30, 3, "full"))])
def test_the_op_is_the_equations(impl, codes, chunk_len, growth):
  with jax.enable_x64(True):
    tokens = make_tokens()
    out, state = run(tokens, impl, codes, chunk_len, growth)
    for head in range(HEADS):
      want, *dictionary = published.online_vq(*(x[0, :, head] for x in tokens), codes, chunk_len, growth)
      np.testing.assert_allclose(out[0, :, head], want, rtol=0, atol=1e-12)
      for got, part in zip((state.key_BHMK, state.value_BHMV, state.count_BHM), dictionary, strict=True):
        np.testing.assert_allclose(got[0, head, : len(part)], part, rtol=0, atol=1e-12)
        assert not np.asarray(got[0, head, len(part) :]).any()


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_gradients_are_the_slopes_of_the_equations(impl):
  """The equations jump where a token joins another code; a step of 1e-6 here leads to no such place."""
  with jax.enable_x64(True):
    tokens, step = make_tokens(seed=1), 1e-6
    weight = np.random.default_rng(2).normal(size=(LENGTH, HEADS, VALUE))

    def equations(tokens):
      by_head = (published.online_vq(*(x[0, :, head] for x in tokens), 7, 4)[0] for head in range(HEADS))
      return (np.stack(list(by_head), 1) * weight).sum()

    grads = quick_jit(jax.grad(lambda tokens: (call(tokens, impl, 7, 4)[0][0] * weight).sum()))(tokens)
    for which in range(3):
      along = [np.zeros_like(x) for x in tokens]
      along[which] = np.random.default_rng(which).normal(size=tokens[which].shape)
      ahead, back = (equations([x + sign * a for x, a in zip(tokens, along, strict=True)]) for sign in (step, -step))
      assert (grads[which] * along[which]).sum() == pytest.approx((ahead - back) / (2 * step), rel=1e-6)


def test_with_a_code_for_every_token_it_is_softmax_attention_whatever_the_chunk():
  with jax.enable_x64(True):
    q, k, v = tokens = make_tokens()
    score = np.where(np.tri(LENGTH, dtype=bool), np.einsum("bqhk,bshk->bhqs", q, k), -np.inf)
    odds = np.exp(score - score.max(-1, keepdims=True))
    want = np.einsum("bhqs,bshv->bqhv", odds / odds.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(run(tokens, "xla", LENGTH, 4, "full")[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_padding_and_the_document_before_leave_no_trace(impl):
  with jax.enable_x64(True):
    tokens = make_tokens()
    ids = jnp.asarray(np.repeat(np.array([[3, 5, 5]], np.int32), (6, 8, 8), axis=1))
    valid = jnp.arange(LENGTH)[None] < 19
    spoilt = tuple(np.where(valid[..., None, None], x, np.nan) for x in tokens)
    out, state = run(spoilt, impl, 7, 4, ids=ids, valid=valid)
    alone, want = run(tuple(x[:, 6:19] for x in tokens), "reference", 7, 4, ids=ids[:, 6:19])
    np.testing.assert_allclose(out[:, 6:19], alone, rtol=0, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), state, want)
    assert not np.asarray(out[:, 19:]).any()
    grads = quick_jit(jax.grad(lambda x: call(x, impl, 7, 4, ids=ids, valid=valid)[0].sum()))(spoilt)
    for grad in grads:
      assert not np.asarray(grad[:, 19:]).any()


def test_tokens_join_codes_that_began_in_their_own_chunk():
  """The first token begins a code, the one least like it the other, and equal keys are together at once."""
  k = np.eye(KEY)[[0, 1, 1, 0, 2, 1, 1, 1]][None, :, None].repeat(HEADS, 2)
  _, state = run((k, k, k[..., :VALUE]), "xla", 2, 4, "full")
  np.testing.assert_array_equal(state.count_BHM[0], [[3, 5]] * HEADS)
  np.testing.assert_allclose(state.key_BHMK[0, 0], [[2 / 3, 0, 1 / 3, 0, 0], [0, 1, 0, 0, 0]], atol=1e-6)
  # two tokens are as little like the first: the earlier one gets the code that is left
  k = np.eye(KEY)[[0, 1, 2, 0, 0, 0, 0, 0]][None, :, None].repeat(HEADS, 2)
  _, state = run((k, k, k[..., :VALUE]), "xla", 2, 4, "full")
  np.testing.assert_array_equal(state.key_BHMK[0, 0, 1], [0, 1, 0, 0, 0])


def test_the_dictionary_grows_as_the_paper_says_and_does_not_overflow():
  for codes in (1, 5, 64, 2**15):
    tokens = np.array([0, 1, 2, 31, 64, 1000, 2**20, 2**30], np.int64)
    want = np.maximum(tokens * codes // (tokens + codes), tokens > 0)
    np.testing.assert_array_equal(num_codes(jnp.asarray(tokens, jnp.int32), codes, "plateau"), want)
    np.testing.assert_array_equal(num_codes(jnp.asarray(tokens, jnp.int32), codes, "full"), np.minimum(tokens, codes))


def test_tokens_of_the_open_chunk_are_kept_in_their_own_dtype_and_means_in_float32():
  tokens = tuple(jnp.asarray(x, jnp.bfloat16) for x in make_tokens())
  state = empty_state(1, HEADS, 7, 4, KEY, VALUE, token_dtype=jnp.dtype("bfloat16"))
  pieces = []
  for begin, end in ((0, 9), (9, 10), (10, LENGTH)):
    out, state = run(tuple(x[:, begin:end] for x in tokens), "xla", 7, 4, state=state)
    pieces.append(out)
  want, want_state = run(tuple(x.astype(jnp.float32) for x in tokens), "reference", 7, 4)
  np.testing.assert_allclose(jnp.concatenate(pieces, 1), want, rtol=0, atol=1e-5)
  assert state.open_key_BHCK.dtype == jnp.bfloat16 and state.key_BHMK.dtype == jnp.float32
  np.testing.assert_array_equal(state.open_key_BHCK.astype(jnp.float32), want_state.open_key_BHCK)


def test_what_does_not_exist_is_refused():
  tokens = [jnp.asarray(x) for x in make_tokens()]
  with pytest.raises(ValueError, match=r"growth='linear' of op 'online_vq' is not one of plateau, full"):
    online_vq(*tokens, growth="linear")
  with pytest.raises(ValueError, match="cannot run: there is no Pallas kernel for it yet"):
    online_vq(*tokens, impl="pallas")
  with pytest.raises(ValueError, match=r"op 'online_vq' was given a state whose key_BHMK has shape"):
    online_vq(*tokens, empty_state(1, HEADS, 9, 32, KEY, VALUE))
