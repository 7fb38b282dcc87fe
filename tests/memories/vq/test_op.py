"""The vector quantiser against numpy, and what the linear form of Transformer-VQ promises beyond the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.memories.vq.layer import update_codebook
from lattice_jax.memories.vq.op import (
  COUNT_FLOOR,
  FORMS,
  Quantized,
  choose_reduction,
  code_statistics,
  codebook,
  dead_codes,
  empty_state,
  quantize,
  revive,
  vq_attention,
)
from tests.contract.harness import quick_jit
from tests.thorough import further

HEADS, CODES, KEY, VALUE = 2, 5, 8, 4


def random_keys(batch, length, seed=0):
  return jax.random.normal(jax.random.key(seed), (batch, length, HEADS, KEY))


def random_rows():
  return jax.random.normal(jax.random.key(9), (HEADS, CODES, KEY))


def test_quantize_finds_the_nearest_row_and_passes_the_gradient_straight_through():
  k, rows = random_keys(2, 7), random_rows()
  distance = ((np.asarray(k)[:, :, :, None] - np.asarray(rows)) ** 2).sum(-1)
  quantized = jax.jit(quantize)(k, rows)
  np.testing.assert_array_equal(quantized.code_BTH, distance.argmin(-1))
  np.testing.assert_allclose(quantized.error_BTH, distance.min(-1), rtol=1e-5)
  picked = np.asarray(rows)[np.arange(HEADS), np.asarray(quantized.code_BTH)]
  np.testing.assert_array_equal(quantized.key_BTHK, picked)
  grad = jax.jit(jax.grad(lambda k: (quantize(k, rows).key_BTHK * 3.0).sum()))(k)
  np.testing.assert_array_equal(grad, np.full(k.shape, 3.0, np.float32))
  assert not np.asarray(jax.jit(jax.grad(lambda rows: quantize(k, rows).key_BTHK.sum()))(rows)).any()


def test_the_commitment_error_pulls_keys_to_their_rows_and_leaves_the_rows():
  k, rows = random_keys(2, 7), random_rows()

  def error(k, rows):
    return quantize(k, rows).error_BTH.sum()

  d_k, d_rows = jax.jit(jax.grad(error, argnums=(0, 1)))(k, rows)
  picked = np.asarray(rows)[np.arange(HEADS), np.asarray(quantize(k, rows).code_BTH)]
  np.testing.assert_allclose(d_k, 2 * (np.asarray(k) - picked), rtol=1e-5, atol=1e-6)
  assert not np.asarray(d_rows).any()


def test_rows_are_mean_keys_and_a_code_that_is_hardly_used_goes_to_the_origin():
  count, total = jnp.array([[4.0, 1.0, 0.5, 0.01, 0.002]] * HEADS), random_rows()
  want = np.asarray(total) / np.array([4.0, 1.0, 0.5, 0.01, 0.01])[:, None]
  np.testing.assert_allclose(codebook(count, total), want, rtol=1e-6)


def test_dead_codes_are_those_below_a_share_of_the_average_of_their_head():
  count = jnp.array([[8.0, 0.2, 4.0, 0.01, 2.0], [0.05] * 5])
  assert dead_codes(count, 0.1).tolist() == [[False, True, False, True, False], [False] * 5]


def test_codebook_moving_average_equals_a_numpy_transcription():
  config = VQConfig(ema_rate=0.99)
  count, total = np.ones((HEADS, CODES), np.float32), np.asarray(random_rows())
  buffers = {"codebook_count": jnp.asarray(count), "codebook_sum": jnp.asarray(total)}
  for step in range(3):
    k = random_keys(2, 11, seed=step)
    valid = jnp.arange(11) < jnp.array([[11], [6]])
    code = quantize(k, codebook(buffers["codebook_count"], buffers["codebook_sum"])).code_BTH
    seen, key_sum = np.zeros_like(count), np.zeros_like(total)
    for b, t, h in np.ndindex(2, 11, HEADS):
      if valid[b, t]:
        seen[h, code[b, t, h]] += 1
        key_sum[h, code[b, t, h]] += k[b, t, h]
    count, total = 0.99 * count + 0.01 * seen, 0.99 * total + 0.01 * key_sum
    new_count, new_sum = code_statistics(k, code, valid, CODES)
    buffers = update_codebook(
      config, buffers, {"codebook_count": new_count, "codebook_sum": new_sum}, jax.random.key(0))
    np.testing.assert_allclose(buffers["codebook_count"], count, rtol=1e-6)
    np.testing.assert_allclose(buffers["codebook_sum"], total, rtol=1e-6, atol=1e-6)


def attend(k, v, q, rows, window, impl, block_len=0, reduction="auto", key_gradient="window"):
  state = empty_state(len(k), window, HEADS, CODES, KEY, VALUE, jnp.dtype("float32"))
  return attend_on(state, k, v, q, rows, window, impl, block_len, reduction, key_gradient)[0]


def attend_on(state, k, v, q, rows, window, impl, block_len, reduction, key_gradient):
  batch, length = k.shape[:2]
  relative = 0.1 * jax.random.normal(jax.random.key(5), (HEADS, window + 1, KEY))
  bias = jnp.full((HEADS, KEY), 0.1)
  return vq_attention(
    q, quantize(k, rows), v, rows, relative, bias, -bias, state, jnp.zeros((batch, length), jnp.int32),
    jnp.ones((batch, length), bool), block_len=block_len or window, reduction=reduction,
    key_gradient=key_gradient, impl=impl)


BOTH = ("serial", "input_scan")


@pytest.mark.parametrize(("window", "block_len", "length", "reductions"), [
  (1, 1, 5, BOTH), (7, 3, 23, FORMS), (4, 30, 23, BOTH),
  *further((4, 4, 33, FORMS), (4, 2, 33, BOTH), (2, 5, 23, BOTH), (30, 4, 23, BOTH))])
def test_linear_form_equals_the_quadratic_definition_far_beyond_the_window(window, block_len, length, reductions):
  k, rows = random_keys(1, length), random_rows()
  q, v = random_keys(1, length, seed=1), jax.random.normal(jax.random.key(2), (1, length, HEADS, VALUE))

  def run(impl, reduction="auto"):
    def loss(k, v, q):
      out = attend(k, v, q, rows, window, impl, block_len, reduction)
      return jnp.sin(3 * out).sum(), out
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(k, v, q)

  def close(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.sqrt(((got - want) ** 2).mean()) <= 1e-5 * np.sqrt((want**2).mean())

  want = run("reference")
  for reduction in reductions:
    jax.tree.map(close, run("xla", reduction), want)


def test_a_key_gets_its_gradient_from_queries_at_most_a_window_away():
  window, length, asked = 4, 20, 17
  k, rows = random_keys(1, length), random_rows()
  q, v = random_keys(1, length, seed=1), jax.random.normal(jax.random.key(2), (1, length, HEADS, VALUE))
  for impl in ("xla", "reference"):
    grad = jax.jit(jax.grad(lambda k, impl=impl: attend(k, v, q, rows, window, impl)[0, asked].sum()))(k)
    has_gradient = np.abs(np.asarray(grad)).sum((0, 2, 3)) > 0
    np.testing.assert_array_equal(has_gradient, [asked - window <= t <= asked for t in range(length)])


def key_gradient_in_float64(k, v, q, rows, window, d_out, is_moved_TS):
  """Through the scores of the pairs (query, key) that move keys; all others see the same keys as constants."""
  k, v, q, rows, d_out = (np.float64(x) for x in (k, v, q, rows, d_out))
  length = k.shape[1]
  relative = np.float64(0.1 * jax.random.normal(jax.random.key(5), (HEADS, window + 1, KEY)))
  d_k = np.zeros_like(k)
  for b, h in np.ndindex(k.shape[0], HEADS):
    code_T = ((k[b, :, h, None] - rows[h]) ** 2).sum(-1).argmin(-1)
    key_TK, u = rows[h][code_T], 0.1
    distance_TS = np.arange(length)[:, None] - np.arange(length)
    bias_TS = np.einsum("TK,TSK->TS", q[b, :, h] - u, relative[h][np.clip(distance_TS, 0, window)])
    score_TS = (q[b, :, h] + u) @ key_TK.T + np.where(distance_TS <= window, bias_TS, 0)
    weight_TS = np.where(distance_TS >= 0, np.exp(score_TS), 0)
    weight_TS /= weight_TS.sum(-1, keepdims=True)
    out_TV = weight_TS @ v[b, :, h]
    d_score_TS = weight_TS * (d_out[b, :, h] @ v[b, :, h].T - (d_out[b, :, h] * out_TV).sum(-1, keepdims=True))
    d_k[b, :, h] = np.where(is_moved_TS, d_score_TS, 0).T @ (q[b, :, h] + u)
  return d_k


@pytest.mark.parametrize(("key_gradient", "window", "block_len"), [
  ("window", 3, 5), ("blocks", 3, 5), *further(("blocks", 4, 4), ("blocks", 7, 30))])
def test_key_gradient_is_that_of_a_float64_transcription(key_gradient, window, block_len):
  """By blocks, as published: from queries of a key's own block and of blocks that have it in their window."""
  length = 23
  k, rows = random_keys(1, length), random_rows()
  q, v = random_keys(1, length, seed=1), jax.random.normal(jax.random.key(2), (1, length, HEADS, VALUE))
  d_out = np.random.default_rng(0).normal(size=v.shape).astype(np.float32)
  i, j = np.arange(length)[:, None], np.arange(length)
  is_moved = (i - j <= window) if key_gradient == "window" else (j >= i // block_len * block_len - window)
  want = key_gradient_in_float64(k, v, q, rows, window, d_out, is_moved & (i >= j))
  if window == block_len:
    by_blocks = (i // block_len - j // block_len <= 1) & (i >= j)
    assert (by_blocks == (is_moved & (i >= j))).all(), "its own block and the next"
  for impl, reduction in (("reference", "auto"), ("xla", "serial"), ("xla", "input_scan")):
    got = quick_jit(jax.grad(lambda k, impl=impl, reduction=reduction: (d_out * attend(
      k, v, q, rows, window, impl, block_len, reduction, key_gradient)).sum()))(k)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_key_gradient_by_blocks_passes_from_call_to_call():
  """Cut where a block begins; elsewhere blocks are others."""
  window, block_len, length = 4, 4, 20
  k, rows = random_keys(1, length), random_rows()
  q, v = random_keys(1, length, seed=1), jax.random.normal(jax.random.key(2), (1, length, HEADS, VALUE))
  empty = empty_state(1, window, HEADS, CODES, KEY, VALUE, jnp.dtype("float32"))

  def gradient(cuts):
    def loss(k):
      state, total = empty, 0.0
      for start, stop in zip((0, *cuts), (*cuts, length), strict=True):
        part = slice(start, stop)
        out, state = attend_on(
          state, k[:, part], v[:, part], q[:, part], rows, window, "xla", block_len, "serial", "blocks")
        total += jnp.sin(3 * out).sum()
      return total
    return quick_jit(jax.grad(loss))(k)

  whole = gradient(())
  np.testing.assert_allclose(gradient((8, 12)), whole, atol=1e-5 * np.abs(whole).max())
  assert np.abs(gradient((7, 12)) - whole).max() > 1e-2 * np.abs(whole).max()


def test_other_key_gradients_are_refused():
  k, rows = random_keys(1, 8), random_rows()
  with pytest.raises(ValueError, match="key_gradient='block' of op 'vq' is not one of window, blocks"):
    attend(k, k[..., :VALUE], k, rows, 4, "xla", key_gradient="block")


def test_kernels_take_blocks_of_whole_tiles_only():
  k, rows = random_keys(1, 8), random_rows()
  with pytest.raises(ValueError, match="need blocks of whole tiles of 128 tokens"):
    attend(k, k[..., :VALUE], k, rows, 4, "interpret", key_gradient="blocks")


@pytest.mark.parametrize("impl", ["xla", "reference"])
def test_invalid_tokens_read_zeros(impl):
  k, rows = random_keys(1, 5), random_rows()
  state = empty_state(1, 2, HEADS, CODES, KEY, VALUE, jnp.dtype("float32"))
  zeros = jnp.zeros((HEADS, KEY))
  out, _ = vq_attention(
    k, quantize(k, rows), jnp.ones((1, 5, HEADS, VALUE)), rows, jnp.zeros((HEADS, 3, KEY)), zeros, zeros, state,
    jnp.zeros((1, 5), jnp.int32), jnp.arange(5)[None] < 3, block_len=2, impl=impl)
  np.testing.assert_allclose(out[0, :3], 1, rtol=1e-6)
  assert not np.asarray(out[0, 3:]).any()


@pytest.mark.parametrize(("impl", "reduction"), [
  ("reference", "auto"), ("xla", FORMS[0]), *further(*(("xla", form) for form in FORMS[1:]))])
def test_what_stands_at_invalid_tokens_changes_nothing(impl, reduction):
  length, num_valid = 11, 7
  k, rows, q = random_keys(1, length), random_rows(), random_keys(1, length, seed=1)
  v, valid = jax.random.normal(jax.random.key(2), (1, length, HEADS, VALUE)), jnp.arange(length)[None] < num_valid
  zeros = jnp.zeros((HEADS, KEY))
  empty = empty_state(1, 2, HEADS, CODES, KEY, VALUE, jnp.dtype("float32"))

  def loss(q, quantized, v, rows, relative):
    out, state = vq_attention(
      q, quantized, v, rows, relative, zeros, zeros, empty, jnp.zeros((1, length), jnp.int32), valid, block_len=3,
      reduction=reduction, impl=impl)
    return jnp.sin(out).sum() + jnp.sin(state.mean_BHMV).sum() + jnp.sin(state.key_BWHK).sum(), (out, state)

  run = quick_jit(jax.grad(loss, argnums=range(5), has_aux=True, allow_int=True))
  quantized, relative = quantize(k, rows), 0.1 * jax.random.normal(jax.random.key(5), (HEADS, 3, KEY))

  def spoil(x, garbage=jnp.nan):
    garbage = garbage if jnp.issubdtype(x.dtype, jnp.floating) else 2**30
    return jnp.where(valid.reshape(1, length, *(1,) * (x.ndim - 2)), x, garbage)

  dirty = run(spoil(q, 1e4), *jax.tree.map(spoil, (quantized, v)), rows, relative)
  is_float = [x for x in jax.tree.leaves(dirty) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert all(np.isfinite(x).all() for x in is_float)
  for got, want in zip(jax.tree.leaves(dirty), jax.tree.leaves(run(q, quantized, v, rows, relative)), strict=True):
    if got.dtype != jax.dtypes.float0:
      np.testing.assert_array_equal(got, want)


def test_what_stands_at_invalid_tokens_does_not_reach_the_codebook():
  k, valid = random_keys(2, 9), jnp.arange(9) < jnp.array([[9], [4]])
  code = quantize(k, random_rows()).code_BTH
  dirty = code_statistics(jnp.where(valid[..., None, None], k, jnp.nan), code, valid, CODES)
  jax.tree.map(np.testing.assert_array_equal, dirty, code_statistics(k, code, valid, CODES))


def test_auto_takes_a_form_that_exists_and_other_names_are_refused():
  assert {choose_reduction("auto", size) for size in (1, 10**9)} <= set(FORMS)
  assert [choose_reduction(form, 1) for form in FORMS] == list(FORMS)
  with pytest.raises(ValueError, match="reduction='sum' of op 'vq' is not one of auto, serial, matmul"):
    choose_reduction("sum", 1)


def test_revival_splits_the_most_used_codes_and_keeps_all_sums():
  count = jnp.array([[8.0, 0.0, 4.0, 0.01, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
  total = random_rows() * count[..., None]
  new_count, new_total = jax.jit(lambda *args: revive(*args, 0.1, jax.random.key(0)))(count, total)
  np.testing.assert_allclose(new_count, [[4, 4, 2, 2, 2], [1] * 5])
  np.testing.assert_array_equal(new_total[1], total[1])
  old_rows, rows = codebook(count, total), codebook(new_count, new_total)
  np.testing.assert_allclose(rows[0, [0, 2, 4]], old_rows[0, [0, 2, 4]], rtol=1e-6)
  for revived, donor in ((1, 0), (3, 2)):
    moved = np.linalg.norm(rows[0, revived] - old_rows[0, donor]) / np.linalg.norm(old_rows[0, donor])
    assert 0.02 < moved < 0.3


def test_revival_of_more_dead_than_living_codes_takes_several_calls():
  count, total = jnp.zeros((1, 8)).at[0, 3].set(16.0), jnp.ones((1, 8, 2)) * 16
  for living in (2, 4, 8):
    count, total = revive(count, total, 0.1, jax.random.key(living))
    assert (np.asarray(count) > 0).sum() == living and count.sum() == 16


def test_the_weight_of_the_start_decides_how_much_of_it_the_first_update_leaves():
  """A start of full weight, as in the paper, or of so little that the first update's keys replace it."""
  k, rows = random_keys(4, 32), random_rows()
  for start in (1.0, COUNT_FLOOR):
    buffers = {"codebook_count": jnp.full((HEADS, CODES), start), "codebook_sum": rows * start}
    code = quantize(k, codebook(*buffers.values())).code_BTH
    count, total = code_statistics(k, code, jnp.ones((4, 32), bool), CODES)
    new = update_codebook(
      VQConfig(), buffers, {"codebook_count": count, "codebook_sum": total}, jax.random.key(0))
    left = (0.99 * start / (0.99 * start + 0.01 * count))[..., None]
    expected = left * rows + (1 - left) * total / count[..., None]
    np.testing.assert_allclose(codebook(*new.values()), expected, rtol=1e-4, atol=1e-5)
    assert (left.min() > 0.6) if start == 1.0 else (left.max() < 0.3)


@pytest.mark.parametrize("dtype", ["bfloat16", *further("float32")])
def test_counts_are_exact_beyond_100_000_tokens(dtype):
  calls, length = 4, 2**15
  codes = np.random.default_rng(0).choice(CODES, (calls, length, HEADS), p=np.eye(CODES)[0] * 0.9 + 0.1 / CODES)
  rows = random_rows()
  state = empty_state(1, 64, HEADS, CODES, KEY, 1, jnp.dtype(dtype))

  @jax.jit
  def read(code_BTH, state):
    zeros = jnp.zeros((HEADS, KEY))
    key = Quantized(rows[jnp.arange(HEADS), code_BTH], code_BTH, jnp.zeros(code_BTH.shape))
    return vq_attention(
      jnp.zeros((1, length, HEADS, KEY)), key, jnp.ones((1, length, HEADS, 1)), rows, jnp.zeros((HEADS, 65, KEY)),
      zeros, zeros, state, jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool), block_len=512)

  for call in codes:
    out, state = read(jnp.asarray(call, jnp.int32)[None], state)
  cached_NH = codes.reshape(-1, HEADS)[:-64]
  expected_HM = [np.bincount(cached_NH[:, head], minlength=CODES) for head in range(HEADS)]
  assert cached_NH.shape[0] > 100_000
  np.testing.assert_array_equal(state.count_BHM[0], expected_HM)
  np.testing.assert_allclose(out, np.ones(out.shape), rtol=1e-6 if dtype == "float32" else 2**-8)
