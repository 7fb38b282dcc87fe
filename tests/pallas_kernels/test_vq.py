"""Kernels of Transformer-VQ attention, interpreted, against its XLA form: values, state, gradients; the code search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

import pallas_kernels.vq
from lattice_jax.memories.vq.op import Quantized, empty_state, quantize, vq_attention
from tests.contract.tolerances import TOLERANCE, rms_ratio

KEY, VALUE, BATCH = 8, 8, 2
TILE = 8  # and block of the XLA form: which slots count as cached, and so give the codebook a gradient, hangs on it


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
  monkeypatch.setattr(pallas_kernels.vq, "TILES", (TILE,))


@functools.cache
def inputs(length, heads, kv_heads, codes, window, dtype):
  shapes = {
    "q": (BATCH, length, heads, KEY), "k": (BATCH, length, kv_heads, KEY), "v": (BATCH, length, kv_heads, VALUE),
    "rows": (kv_heads, codes, KEY), "relative": (kv_heads, window + 1, KEY), "content": (heads, KEY),
    "position": (heads, KEY), "past": (BATCH, window, kv_heads, VALUE), "mean": (BATCH, kv_heads, codes, VALUE)}
  keys = jax.random.split(jax.random.key(0), len(shapes))
  arrays = {name: 0.7 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
  return {name: x if name == "rows" else x.astype(dtype).astype(jnp.float32) for name, x in arrays.items()}


def state_with_a_past(arrays, window, dtype):
  """A full window and a cache of document 0, in which some codes have no tokens."""
  kv_heads, codes, _ = arrays["rows"].shape
  empty = empty_state(BATCH, window, kv_heads, codes, KEY, VALUE, jnp.dtype(dtype))
  return empty.replace(
    code_BWH=(jnp.arange(window)[:, None] + jnp.zeros_like(empty.code_BWH)) % codes,
    value_BWHV=arrays["past"].astype(dtype), id_BW=jnp.zeros_like(empty.id_BW),
    count_BHM=jnp.arange(codes) % 4 + empty.count_BHM, mean_BHMV=arrays["mean"],
    document_B=jnp.zeros_like(empty.document_B))


def run(arrays, window, dtype, impl, use_cache, block=0):
  """Output, state and gradients of a call in which row 0 begins another document and row 1 ends early."""
  place = np.arange(arrays["q"].shape[1])
  ids = jnp.asarray(np.stack([place >= len(place) // 3, 0 * place]), jnp.int32)
  valid = jnp.asarray(np.stack([place < len(place), place < len(place) - 3]))
  return value_and_gradients(arrays, ids, valid, window, dtype, impl, use_cache, block)


def value_and_gradients(arrays, ids, valid, window, dtype, impl, use_cache, block=0):
  """block: tokens of the blocks by which keys get their gradient; 0 = by distance."""
  def loss(arrays):
    out, state = vq_attention(
      arrays["q"], quantize(arrays["k"], arrays["rows"], impl="xla"), arrays["v"], arrays["rows"], arrays["relative"],
      arrays["content"], arrays["position"], state_with_a_past(arrays, window, dtype), ids, valid,
      block_len=block or TILE, key_gradient="blocks" if block else "window", use_cache=use_cache, impl=impl)
    return jnp.sin(3 * out).sum() + (state.mean_BHMV**2).sum(), {
      "output": out, "state": (state.mean_BHMV, state.count_BHM)}

  grads, results = jax.grad(loss, has_aux=True)(arrays)
  return {**results, "gradient": grads}


def compiled(window, dtype, impl, use_cache, block=0):
  return jax.jit(functools.partial(run, window=window, dtype=dtype, impl=impl, use_cache=use_cache, block=block))


def assert_close(got, want, dtype):
  for quantity in want:
    for got_leaf, want_leaf in zip(jax.tree.leaves(got[quantity]), jax.tree.leaves(want[quantity]), strict=True):
      assert rms_ratio(got_leaf, want_leaf) <= TOLERANCE[quantity, dtype], (quantity, want_leaf.shape)


@pytest.mark.parametrize(("length", "heads", "kv_heads", "codes", "window", "use_cache", "dtype"), [
  (29, 4, 2, 130, 12, True, "float32"), (5, 2, 2, 3, 3, False, "bfloat16")], ids=str)
def test_equals_the_xla_form_with_all_gradients(length, heads, kv_heads, codes, window, use_cache, dtype):
  """Windows that do and do not fit tiles, codes beyond one tile, calls shorter than a tile, a state with a past."""
  arrays = inputs(length, heads, kv_heads, codes, window, dtype)
  got = compiled(window, dtype, "interpret", use_cache)(arrays)
  assert_close(got, compiled(window, "float32", "xla", use_cache)(arrays), dtype)


@pytest.mark.thorough
def test_key_gradients_by_blocks_of_several_tiles_equal_the_xla_form():
  """The last block is not whole, the window no multiple of a tile."""
  window, block = 12, 2 * TILE
  arrays = inputs(45, 2, 1, 5, window, "float32")
  got = compiled(window, "float32", "interpret", True, block)(arrays)
  assert_close(got, compiled(window, "float32", "xla", True, block)(arrays), "float32")


@pytest.mark.thorough
def test_tiles_of_several_strips_and_values_of_several_parts_with_all_gradients(monkeypatch):
  """256 tokens, two groups of as many rows as there are lanes; values longer than a product takes at a time."""
  monkeypatch.setattr(pallas_kernels.vq, "TILES", (256,))
  for name, size in (("TILE", 256), ("VALUE", 520), ("BATCH", 1)):
    monkeypatch.setattr(f"{__name__}.{name}", size)
  length, window, codes = 300, 200, 5
  arrays = inputs.__wrapped__(length, 1, 1, codes, window, "float32")
  ids, valid = jnp.asarray([[0] * 150 + [1] * 150], jnp.int32), jnp.ones((1, length), bool)

  def results(impl):
    return jax.jit(functools.partial(
      value_and_gradients, ids=ids, valid=valid, window=window, dtype="float32", impl=impl, use_cache=True))(arrays)

  assert_close(results("interpret"), results("xla"), "float32")


def smallest_call(interpret, span=0):
  """Value and gradients of the smallest call with everything in it: two tiles, a window of half a one, two heads that
  share keys. span: tokens of blocks by which keys get their gradient."""
  length, window = 13, 4
  arrays = inputs(length, 2, 1, 3, window, "float32")
  ids = jnp.concatenate([jnp.zeros((1, window)), jnp.ones((1, length))], 1).astype(jnp.int32)
  count = jnp.asarray([[0, 2, 1], [3, 2, 4]], jnp.float32)[:, None, None]
  k, v = (jnp.concatenate([x[:1, :window], x[:1]], 1) for x in (arrays["k"], arrays["v"]))
  floats = (
    arrays["q"][:1], -arrays["q"][1:], k, v, arrays["rows"], arrays["relative"], arrays["mean"][:, None])

  def loss(*floats):
    *tokens, mean = floats
    out = pallas_kernels.vq.vq_attention(
      *tokens, ids[:, window:], ids, (mean, count, jnp.ones((2, 1), jnp.int32)), tile=TILE, span=span,
      interpret=interpret)
    return jnp.sin(out).sum()

  return jax.jit(jax.value_and_grad(loss, tuple(range(len(floats))))), floats


@pytest.fixture(scope="module")
def smallest_result():
  function, floats = smallest_call(True)
  result = function(*floats)
  jax.tree.map(np.testing.assert_array_equal, result, function(*floats))  # two runs, equal to the last bit
  return jax.tree.map(np.asarray, result)


def assert_equal_trees(got, want):
  for got_leaf, want_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert rms_ratio(got_leaf, want_leaf) <= TOLERANCE["output", "float32"], np.shape(want_leaf)


def test_a_mesh_that_splits_the_width_of_values_gives_the_same(smallest_result):
  """One key head cannot be split; gradients of all that is not split are summed over the mesh."""
  function, floats = smallest_call(True)
  with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)):
    assert "manual" in function.lower(*floats).as_text()
    assert_equal_trees(function(*floats), smallest_result)


def test_where_a_mesh_divides_nothing_every_device_runs_the_kernels():
  """XLA cannot split a kernel, and on TPUs refuses a program in which it would have to."""
  function, floats = smallest_call(True)
  arrays = inputs(13, 2, 1, 3, 4, "float32")
  with jax.set_mesh(jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:3])):
    assert "manual" in function.lower(*floats).as_text()
    search = jax.jit(functools.partial(quantize, impl="interpret")).lower(arrays["k"], arrays["rows"])
    assert "manual" in search.as_text()


def test_no_memory_is_read_before_it_is_written_and_nothing_races(capfd, smallest_result):
  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", num_cores_or_threads=2)
  function, floats = smallest_call(params)
  assert_equal_trees(function(*floats), smallest_result)
  assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize(("length", "codes"), [(29, 5), (3, 300)])
def test_code_search_finds_the_nearest_row_and_the_lower_of_equals(length, codes):
  arrays = inputs(length, 2, 2, codes, 3, "float32")
  equals = [*range(9, codes, 8), codes - 1]  # in the same register row as the first of them, and in another
  rows = arrays["rows"].at[:, equals].set(arrays["rows"][:, 1:2])
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
  with pytest.raises(ValueError, match="'pallas' of op 'vq' cannot run: there is no Pallas kernel of it for cpu; use"):
    jax.eval_shape(functools.partial(run, window=3, dtype="float32", impl="pallas", use_cache=True), arrays)
