"""Windowed attention kernels, interpreted, against a softmax over all scores; test_vq.py checks memory and races."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from lattice_jax.ops.attention import Order, attend
from pallas_kernels.window import supports, window_attention
from tests.contract.tolerances import TOLERANCE, rms_ratio

KEY, VALUE = 8, 6
EMPTY = -1


def packed(length):
  """Row 0: two documents, the second from token 11 on. Row 1: one document and seven invalid tokens."""
  place = np.arange(length)
  return np.stack([np.where(place < 11, 0, 1), np.where(place < length - 7, 3, EMPTY)]).astype(np.int32)


def inputs(length, slots, heads, kv_heads, dtype):
  shapes = (2, length, heads, KEY), (2, slots, kv_heads, KEY), (2, slots, kv_heads, VALUE)
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))


def is_seen(query_index, query_id, key_index, key_id, window, skip, is_sink):
  back = query_index[:, :, None] - key_index[:, None]
  same = (query_id[:, :, None] == key_id[:, None]) & (key_id >= 0)[:, None]
  return same & (back >= skip) & ((back < (window or 2**20)) | is_sink[:, None])


def plain(q, k, v, is_seen_BTS):
  """The definition: every score, fp32."""
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  q = q.reshape(*q.shape[:2], k.shape[2], -1, KEY)
  is_seen = is_seen_BTS[:, None, None]
  score = jnp.where(is_seen, jnp.einsum("bthgk,bshk->bhgts", q, k, precision="highest") * KEY**-0.5, -1e30)
  top = jax.lax.stop_gradient(score.max(-1, keepdims=True))
  weight = jnp.where(is_seen, jnp.exp(score - top), 0)
  total = weight.sum(-1, keepdims=True)
  safe = jnp.where(total > 0, total, 1)
  out = jnp.einsum("bhgts,bshv->bthgv", weight / safe, v, precision="highest")
  lse = jnp.moveaxis(jnp.where(total > 0, top + jnp.log(safe), -1e30)[..., 0], 3, 1)
  return out.reshape(*out.shape[:2], -1, VALUE), lse.reshape(*lse.shape[:2], -1)


def with_gradients(attend):
  """(out, lse) and the gradients of a loss of both."""
  def loss(q, k, v):
    out, lse = attend(q, k, v)
    seen_lse = jnp.where(lse > -1e29, lse, 0)
    return jnp.sin(3 * out).sum() + (seen_lse**2).sum(), {"output": out, "lse": lse}

  def run(q, k, v):
    grads, results = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return {**results, "gradient": grads}

  return jax.jit(run)


def assert_close(got, want, dtype):
  assert rms_ratio(got["output"], want["output"]) <= TOLERANCE["output", dtype]
  np.testing.assert_array_equal(np.asarray(got["lse"]) == -1e30, np.asarray(want["lse"]) == -1e30)
  finite = np.asarray(want["lse"]) > -1e29
  assert rms_ratio(np.asarray(got["lse"])[finite], np.asarray(want["lse"])[finite]) <= TOLERANCE["output", dtype]
  for got_grad, want_grad in zip(got["gradient"], want["gradient"], strict=True):
    assert rms_ratio(got_grad, want_grad) <= TOLERANCE["gradient", dtype]


def own_tokens(length, window, sinks):
  """Arguments of a call on its own tokens, and who sees whom in it."""
  ids = packed(length)
  index = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
  start = np.stack([np.where(index[0] < 11, 0, 11), 0 * index[1]])
  return (index, ids), is_seen(index, ids, index, ids, window, 0, index - start < sinks)


@functools.cache
def compiled(length, window, sinks, tile):
  places, _ = own_tokens(length, window, sinks)
  return with_gradients(
    lambda *qkv: window_attention(*qkv, *places, window=window, sinks=sinks, tile=tile, interpret=True))


@pytest.mark.parametrize(("length", "heads", "kv_heads", "window", "sinks", "tile", "dtype"), [
  (37, 4, 2, 5, 2, 8, "float32"), (23, 2, 2, 13, 3, 128, "bfloat16")], ids=str)
def test_equals_plain_softmax_with_all_gradients(length, heads, kv_heads, window, sinks, tile, dtype):
  """Odd lengths, shorter than a tile, windows shorter and longer than one; documents that begin within a tile."""
  qkv = inputs(length, length, heads, kv_heads, dtype)
  got = compiled(length, window, sinks, tile)(*qkv)
  _, seen = own_tokens(length, window, sinks)
  assert_close(got, with_gradients(lambda *qkv: plain(*qkv, seen))(*qkv), dtype)


def test_two_runs_are_equal_to_the_last_bit():
  qkv = inputs(37, 37, 4, 2, "float32")
  first, second = (compiled(37, 5, 2, 8)(*qkv) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_op_takes_it_by_name_and_a_mesh_gives_the_same():
  """Rows and heads are split over a 2×2 mesh."""
  qkv = inputs(37, 37, 4, 2, "float32")
  (index, ids), _ = own_tokens(37, 5, 0)
  order = Order(index_BT=jnp.asarray(index), id_BT=jnp.asarray(ids))

  def run(impl):
    return jax.jit(lambda *qkv: attend(*qkv, order, order, window=5, skip=1, impl=impl))

  want = run("reference")(*qkv)
  mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    got = run("interpret")(*qkv)
  for got_leaf, want_leaf in zip(got, want, strict=True):
    np.testing.assert_allclose(got_leaf, want_leaf, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="'pallas' of op 'attention' cannot run: there is no Pallas kernel of it for"):
    run("pallas").trace(*qkv)


def test_where_a_mesh_divides_nothing_every_device_runs_the_kernel():
  """XLA cannot split a kernel, and on TPUs refuses a program in which it would have to."""
  qkv = inputs(13, 13, 3, 3, "float32")
  (index, ids), _ = own_tokens(13, 5, 0)
  order = Order(index_BT=jnp.asarray(index), id_BT=jnp.asarray(ids))
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    lowered = jax.jit(lambda *qkv: attend(*qkv, order, order, window=5, skip=1, impl="interpret")).lower(*qkv)
  assert "manual" in lowered.as_text()


def test_keys_of_a_cache_with_the_nearest_tokens_left_out():
  length, slots, window, skip = 5, 19, 9, 2
  query_index = np.stack([np.arange(length)] * 2).astype(np.int32)
  query_id = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, EMPTY]], np.int32)
  key_index = np.stack([np.arange(slots) - slots, np.arange(slots) - 12]).astype(np.int32)
  key_id = np.where(key_index < 0, 0, EMPTY).astype(np.int32)
  places = query_index, query_id, key_index, key_id
  qkv = inputs(length, slots, 4, 2, "float32")
  got = jax.jit(lambda *qkv: window_attention(
    *qkv, *places, window=window, skip=skip, tile=8, interpret=True))(*qkv)
  want = plain(*qkv, is_seen(*places, window, skip, np.zeros(key_id.shape, bool)))
  for got_leaf, want_leaf in zip(got, want, strict=True):
    np.testing.assert_allclose(got_leaf, want_leaf, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_sixty_six_thousand_tokens():
  length, window, tail = 2**16 + 77, 100, 128
  ids = np.zeros((1, length), np.int32)
  index = np.arange(length, dtype=np.int32)[None]
  q, k, v = (x[:1, :, :1] for x in inputs(length, length, 1, 1, "float32"))
  out, lse = jax.jit(lambda *qkv: window_attention(*qkv, index, ids, window=window, tile=1024, interpret=True))(q, k, v)
  cut = length - tail - window
  places = index[:, -tail:], ids[:, -tail:], index[:, cut:], ids[:, cut:]
  want = plain(q[:, -tail:], k[:, cut:], v[:, cut:], is_seen(*places, window, 0, np.zeros((1, tail + window), bool)))
  np.testing.assert_allclose(out[:, -tail:], want[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(lse[:, -tail:], want[1], rtol=1e-5, atol=1e-5)


def test_what_no_kernel_does_is_said():
  sizes = {"dtype": jnp.bfloat16, "key_dim": 128, "value_dim": 128, "heads": 8, "kv_heads": 2}
  assert supports(**sizes, window=512, sinks=4) is None
  assert "take float32 and bfloat16, not float16" in supports(**sizes | {"dtype": jnp.float16})
  assert "there is no window" in supports(**sizes, sinks=4)
  assert "do not fit the vector memory" in supports(**sizes | {"value_dim": 2**16})
  assert "3 key heads" in supports(**sizes | {"kv_heads": 3})
