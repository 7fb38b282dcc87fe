"""Kernels of Transformer-VQ attention, interpreted, against its XLA form: values, state, gradients; the code search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

import pallas_kernels.vq
from lattice_jax.ops.vq import Quantized, empty_state, quantize, vq_attention
from tests.contract.tolerances import TOLERANCE, rms_ratio

KEY, VALUE, BATCH = 8, 8, 2
PREFIX = 11  # tokens before the call
TILE = 8  # and block of the XLA form: which slots count as cached, and so give the codebook a gradient, hangs on it


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
  monkeypatch.setattr(pallas_kernels.vq, "TILES", (TILE,))


@functools.cache
def inputs(length, heads, kv_heads, codes, window, dtype):
  """A prefix of one document and a call in which row 0 begins another and row 1 ends early."""
  total = PREFIX + length
  shapes = {
    "q": (BATCH, total, heads, KEY), "k": (BATCH, total, kv_heads, KEY), "v": (BATCH, total, kv_heads, VALUE),
    "rows": (kv_heads, codes, KEY), "relative": (kv_heads, window + 1, KEY), "content": (heads, KEY),
    "position": (heads, KEY)}
  keys = jax.random.split(jax.random.key(0), len(shapes))
  arrays = {name: 0.7 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
  rounded = {name: x.astype(dtype).astype(jnp.float32) for name, x in arrays.items()}
  return {name: x if name == "rows" else rounded[name] for name, x in arrays.items()}


def run(arrays, window, dtype, impl, use_cache):
  """Outputs of prefix and call, and the last state; with gradients through the state between them."""
  length, codes = arrays["q"].shape[1] - PREFIX, arrays["rows"].shape[1]
  place = np.arange(length)
  ids = jnp.asarray(np.stack([place >= length // 3, 0 * place]), jnp.int32)
  valid = jnp.asarray(np.stack([place < length, place < length - 3]))

  def loss(arrays):
    state = empty_state(BATCH, window, arrays["k"].shape[2], codes, KEY, VALUE, jnp.dtype(dtype))
    outs = []
    for cut, cut_ids, cut_valid in (
      (slice(0, PREFIX), jnp.zeros((BATCH, PREFIX), jnp.int32), jnp.ones((BATCH, PREFIX), bool)),
      (slice(PREFIX, None), ids, valid)):
      key = quantize(arrays["k"][:, cut], arrays["rows"], impl="xla")
      out, state = vq_attention(
        arrays["q"][:, cut], key, arrays["v"][:, cut], arrays["rows"], arrays["relative"], arrays["content"],
        arrays["position"], state, cut_ids, cut_valid, block_len=TILE, use_cache=use_cache,
        impl="xla" if cut.start == 0 else impl)
      outs.append(out)
    total = sum(jnp.sin(3 * out).sum() for out in outs) + (state.mean_BHMV**2).sum()
    return total, {"output": outs, "state": (state.mean_BHMV, state.count_BHM)}

  grads, results = jax.grad(loss, has_aux=True)(arrays)
  return {**results, "gradient": grads}


def compiled(window, dtype, impl, use_cache):
  return jax.jit(functools.partial(run, window=window, dtype=dtype, impl=impl, use_cache=use_cache))


def assert_close(got, want, dtype):
  for quantity in want:
    for got_leaf, want_leaf in zip(jax.tree.leaves(got[quantity]), jax.tree.leaves(want[quantity]), strict=True):
      assert rms_ratio(got_leaf, want_leaf) <= TOLERANCE[quantity, dtype], (quantity, want_leaf.shape)


@pytest.mark.parametrize(("length", "heads", "kv_heads", "codes", "window", "use_cache", "dtype"), [
  (29, 4, 2, 5, 12, True, "float32"), (29, 1, 1, 130, 8, True, "bfloat16"), (5, 2, 2, 3, 3, False, "float32")], ids=str)
def test_equals_the_xla_form_with_all_gradients(length, heads, kv_heads, codes, window, use_cache, dtype):
  """Windows that do and do not fit tiles, codes beyond one tile, calls shorter than a tile, a state with a past."""
  arrays = inputs(length, heads, kv_heads, codes, window, dtype)
  got = compiled(window, dtype, "interpret", use_cache)(arrays)
  assert_close(got, compiled(window, "float32", "xla", use_cache)(arrays), dtype)


def test_two_runs_are_equal_and_meshes_give_the_same():
  """Over a 2×4 mesh with one head, the width of values is split and gradients of the rest are summed."""
  arrays = inputs(13, 1, 1, 5, 8, "float32")
  want, again = (compiled(8, "float32", "interpret", True)(arrays) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, want, again)
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
    function = compiled(8, "float32", "interpret", True)
    assert "manual" in function.lower(arrays).as_text()
    got = function(arrays)
  assert_close(jax.tree.map(np.asarray, got), want, "float32")


def kernel_arguments():
  """Of the smallest call with everything in it: two tiles, a window of half a one, two heads that share keys."""
  length, window = 13, 4
  arrays = inputs(length - PREFIX + window, 2, 1, 3, window, "float32")
  q, key, v = (arrays[name][:1] for name in ("q", "k", "v"))
  slots = jnp.concatenate([jnp.zeros((1, window)), jnp.ones((1, length))], 1).astype(jnp.int32)
  floats = (
    q[:, :length], -q[:, :length], key[:, :length + window], v[:, :length + window], arrays["rows"], arrays["relative"],
    jax.random.normal(jax.random.key(1), (2, 1, 1, 3, VALUE)))
  count = jnp.asarray([[0, 2, 1], [3, 2, 4]], jnp.float32)[:, None, None]

  def attend(interpret, *floats):
    *tokens, mean = floats
    return pallas_kernels.vq.vq_attention(
      *tokens, slots[:, window:], slots, (mean, count, jnp.ones((2, 1), jnp.int32)), tile=TILE, interpret=interpret)

  return attend, floats


def test_no_memory_is_read_before_it_is_written_and_nothing_races(capfd):
  attend, floats = kernel_arguments()

  def with_gradients(interpret):
    def loss(*floats):
      return jnp.sin(attend(interpret, *floats)).sum()

    return jax.jit(jax.value_and_grad(loss, tuple(range(len(floats)))))(*floats)

  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)
  got, want = with_gradients(params), with_gradients(True)
  for got_leaf, want_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert rms_ratio(got_leaf, want_leaf) <= TOLERANCE["output", "float32"]
  assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize(("length", "codes"), [(29, 5), (3, 300)])
def test_code_search_finds_the_nearest_row_and_the_lower_of_equals(length, codes):
  arrays = inputs(length, 2, 2, codes, 3, "float32")
  rows = arrays["rows"].at[:, codes - 1].set(arrays["rows"][:, 1])
  keys = arrays["k"].at[:, 0].set(rows[None, :, 1])
  got = jax.jit(functools.partial(quantize, impl="interpret"))(keys, rows)
  want = jax.jit(functools.partial(quantize, impl="xla"))(keys, rows)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert (np.asarray(got.code_BTH)[:, 0] == 1).all()
  assert isinstance(got, Quantized)


def test_what_no_kernel_does_is_said():
  sizes = {"dtype": jnp.bfloat16, "key_dim": 128, "value_dim": 1536, "codes": 512, "window": 512}
  assert pallas_kernels.vq.supports(**sizes) is None
  assert "take float32 and bfloat16, not float16" in pallas_kernels.vq.supports(**sizes | {"dtype": jnp.float16})
  assert "do not fit the vector memory" in pallas_kernels.vq.supports(**sizes | {"value_dim": 2**16})
  assert "codebook of 1000000 rows" in pallas_kernels.vq.supports_search(key_dim=128, codes=10**6)
  arrays = inputs(5, 1, 1, 3, 3, "float32")
  with pytest.raises(ValueError, match="'pallas' of op 'vq' cannot run: its kernels run on tpu, not on cpu; use impl="):
    jax.eval_shape(functools.partial(run, window=3, dtype="float32", impl="pallas", use_cache=True), arrays)
