"""Attention kernels of Hopper GPUs: interpreted, races looked for, against plain softmax and TPU kernels; lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.vq
from lattice_jax.dispatch import BACKEND
from lattice_jax.ops.attention import Order, attend
from pallas_kernels import flash_hopper, specs
from pallas_kernels.flash_backends import supports_backend
from pallas_kernels.window import window_attention
from tests.contract.tolerances import TOLERANCE, rms_ratio
from tests.pallas_kernels import test_vq
from tests.pallas_kernels.interpreted_hopper import PARAMS, interpreted
from tests.pallas_kernels.test_window import assert_close, inputs, is_seen, plain, with_gradients
from tests.thorough import further

HEAD = {"dtype": jnp.bfloat16, "key_dim": 128, "value_dim": 128}


def test_window_equals_plain_softmax_with_all_gradients():
  """Three blocks, the last without near sinks; a document that begins within a tile, and a place without a token."""
  length, window, sinks = 35, 9, 2
  index, ids = np.arange(length, dtype=np.int32)[None], np.repeat([0, 1, -1], [5, 29, 1]).astype(np.int32)[None]
  qkv = tuple(x[:1] for x in inputs(length, length, 1, 1, "bfloat16"))
  with interpreted(rows=8):
    got = jax.block_until_ready(with_gradients(lambda *qkv: window_attention(
      *qkv, index, ids, window=window, sinks=sinks, backend="gpu", interpret=PARAMS))(*qkv))
  is_sink = (index < sinks) | ((index >= 5) & (index < 5 + sinks))
  seen = is_seen(index, ids, index, ids, window, 0, is_sink)
  assert_close(got, with_gradients(lambda *qkv: plain(*qkv, seen))(*qkv), "bfloat16")


@pytest.mark.parametrize("span", [0, *further(2 * test_vq.TILE)], ids=["by-distance", "by-blocks"])
def test_vq_equals_the_tpu_kernel_with_all_gradients(monkeypatch, span):
  """Which equals the XLA form. Two blocks, heads that share keys, a window of half a block, codes without tokens."""
  function, floats = test_vq.smallest_call(True, span)
  floats = tuple(x.astype(jnp.bfloat16).astype(jnp.float32) for x in floats)
  want = function(*floats)
  kernel = pallas_kernels.vq.vq_attention

  def on_hopper(qu, qw, k, v, *rest, tile, span, interpret):
    tokens = (x.astype(jnp.bfloat16) for x in (qu, qw, k, v))
    return kernel(*tokens, *rest, tile=tile, span=span, backend="gpu", interpret=PARAMS if interpret else False)

  monkeypatch.setattr(pallas_kernels.vq, "vq_attention", on_hopper)
  with interpreted(rows=test_vq.TILE // 2):
    got = jax.block_until_ready(test_vq.smallest_call(True, span)[0](*floats))
  assert rms_ratio(got[0], want[0]) <= TOLERANCE["loss", "bfloat16"]
  for got_grad, want_grad in zip(got[1], want[1], strict=True):
    assert rms_ratio(got_grad, want_grad) <= TOLERANCE["gradient", "bfloat16"]


def test_lowers_for_an_h100():
  cases = {name: case for name, *case in specs.HOPPER_CASES}
  function, shapes = cases["window_512_sinks_grouped_d128_gradient"]
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@mosaic_gpu") == 4


def test_runs_by_name_only(monkeypatch):
  monkeypatch.setenv(BACKEND, "gpu")
  qkv = inputs(37, 37, 4, 2, "bfloat16")
  order = Order(*(jnp.zeros((2, 37), jnp.int32),) * 2)

  def window(impl):
    return str(jax.make_jaxpr(lambda *qkv: attend(*qkv, order, order, window=5, impl=impl))(*qkv))

  def vq(impl):
    function = functools.partial(test_vq.run, window=3, dtype="bfloat16", impl=impl, use_cache=True)
    return str(jax.make_jaxpr(function)(test_vq.inputs(13, 2, 1, 5, 3, "bfloat16")))

  assert "flash_forward" not in window("auto")
  assert all("flash_forward" in program("pallas") for program in (window, vq))


def test_what_no_hopper_kernel_does_is_said():
  assert supports_backend("gpu", **HEAD) is None
  assert "multiply bfloat16 and convert nothing, and these are float32" in supports_backend(
    "gpu", **HEAD | {"dtype": jnp.float32})
  assert "at most 128 key and value numbers, not 128 and 192" in supports_backend("gpu", **HEAD | {"value_dim": 192})
  assert "no Pallas kernel of it for cpu" in supports_backend("cpu", **HEAD)
  assert "impl='pallas' takes them" in flash_hopper.AUTO_REASON
