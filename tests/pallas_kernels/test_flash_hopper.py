"""Attention kernels of Hopper GPUs, interpreted: against a softmax over all scores, without races; lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.dispatch import BACKEND
from lattice_jax.ops.attention import Order, attend
from pallas_kernels import flash_hopper, specs
from pallas_kernels.window import supports_backend, window_attention
from tests.pallas_kernels.interpreted_hopper import PARAMS, interpreted
from tests.pallas_kernels.test_window import assert_close, inputs, is_seen, plain, with_gradients

HEAD = {"dtype": jnp.bfloat16, "key_dim": 128, "value_dim": 128}


def test_window_equals_plain_softmax_with_all_gradients():
  """Three blocks, the last without near sinks; a document that begins within a tile, and a place without a token."""
  length, window, sinks = 35, 9, 2
  index, ids = np.arange(length, dtype=np.int32)[None], np.repeat([0, 1, -1], [5, 29, 1]).astype(np.int32)[None]
  qkv = tuple(x[:1] for x in inputs(length, length, 2, 1, "bfloat16"))
  with interpreted(rows=8):
    got = jax.block_until_ready(with_gradients(lambda *qkv: window_attention(
      *qkv, index, ids, window=window, sinks=sinks, backend="gpu", interpret=PARAMS))(*qkv))
  is_sink = (index < sinks) | ((index >= 5) & (index < 5 + sinks))
  seen = is_seen(index, ids, index, ids, window, 0, is_sink)
  assert_close(got, with_gradients(lambda *qkv: plain(*qkv, seen))(*qkv), "bfloat16")


def test_lowers_for_an_h100():
  cases = {name: case for name, *case in specs.HOPPER_CASES}
  function, shapes = cases["window_512_sinks_grouped_d128_gradient"]
  text = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@mosaic_gpu") == 4


def test_runs_by_name_only(monkeypatch):
  monkeypatch.setenv(BACKEND, "gpu")
  qkv = inputs(37, 37, 4, 2, "bfloat16")
  order = Order(*(jnp.zeros((2, 37), jnp.int32),) * 2)

  def program(impl):
    return str(jax.make_jaxpr(lambda *qkv: attend(*qkv, order, order, window=5, impl=impl))(*qkv))

  assert "flash_forward" not in program("auto")
  assert "flash_forward" in program("pallas")


def test_what_no_hopper_kernel_does_is_said():
  assert supports_backend("gpu", **HEAD) is None
  assert "multiply bfloat16 and convert nothing, and these are float32" in supports_backend(
    "gpu", **HEAD | {"dtype": jnp.float32})
  assert "at most 128 key and value numbers, not 128 and 192" in supports_backend("gpu", **HEAD | {"value_dim": 192})
  assert "no Pallas kernel of it for cpu" in supports_backend("cpu", **HEAD)
  assert "impl='pallas' takes them" in flash_hopper.AUTO_REASON
