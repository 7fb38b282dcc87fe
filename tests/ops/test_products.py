"""Products are what they say, with the gradients of plain expressions, in the order that XLA's CPU backend wants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.recurrent import l2_normalize
from lattice_jax.modules import rms_normalize
from lattice_jax.ops.products import inner, multiply, scaled


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(("function", "plain", "shapes"), [
  (inner, lambda a, b: (a * b).sum(-1), [(2, 3, 4, 5)] * 2),
  (scaled, lambda x, factor: x * factor[..., None], [(2, 3, 4, 5), (2, 3, 4)]),
  (lambda x, array: multiply(x, array, 2), lambda x, array: jnp.einsum("BTHV,HVDK->BTDK", x, array),
   [(2, 3, 4, 5), (4, 5, 6, 7)]),
  (multiply, lambda x, array: jnp.einsum("D,DK->K", x, array), [(4,), (4, 5)]),
])
def test_value_and_gradients(function, plain, shapes):
  with jax.enable_x64():
    arrays = [draw(*shape, seed=n) for n, shape in enumerate(shapes)]
    out, pull = jax.vjp(function, *arrays)
    expected, pull_plain = jax.vjp(plain, *arrays)
    d_out = draw(*expected.shape, seed=7)
    for got, wanted in zip((out, *pull(d_out)), (expected, *pull_plain(d_out)), strict=True):
      np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_gradients_keep_the_dtype():
  x, array = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
  d_x, d_array = jax.grad(lambda x, array: multiply(x, array).sum().astype(jnp.float32), argnums=(0, 1))(x, array)
  assert (d_x.dtype, d_array.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_the_gradient_of_a_weight_comes_out_as_the_weight_lies():
  x, array = jnp.ones((2, 8, 4)), jnp.ones((4, 2, 3))
  text = str(jax.make_jaxpr(jax.grad(lambda array: jnp.square(multiply(x, array)).sum()))(array))
  assert "transpose[" not in text, text


@pytest.mark.parametrize("normalize", [rms_normalize, lambda x: l2_normalize(x, eps=1e-6)])
def test_norms_sum_no_products_but_squares(normalize):
  x = jnp.ones((1, 2, 3, 4))
  text = str(jax.make_jaxpr(jax.grad(lambda x: (normalize(x) * 2).sum()))(x))
  assert text.count("reduce_sum") == 1 + text.count("reduce_sum[axes=(0, 1, 2, 3)"), text
