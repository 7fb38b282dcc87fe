"""Inverses of triangular matrices."""

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.ops.triangular import inverse_unit_lower
from tests.contract.harness import quick_jit


def test_inverse_of_a_unit_triangular_matrix_by_halves():
  with jax.enable_x64(True):
    for size in (1, 2, 5, 16):
      strict = np.tril(np.random.default_rng(size).normal(size=(3, size, size)), -1)
      want = np.linalg.inv(np.eye(size) + strict)
      np.testing.assert_allclose(quick_jit(inverse_unit_lower)(strict), want, rtol=1e-12, atol=1e-12)


def test_gradient_of_that_inverse():
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    strict, d_inverse = jnp.asarray(np.tril(rng.normal(size=(5, 5)), -1)), jnp.asarray(rng.normal(size=(5, 5)))
    got = quick_jit(jax.grad(lambda strict: (inverse_unit_lower(strict) * d_inverse).sum()))(strict)
    want = quick_jit(
      jax.grad(lambda strict: (jnp.linalg.inv(jnp.eye(5) + jnp.tril(strict, -1)) * d_inverse).sum()))(strict)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
