"""Weights as files hold them: codes times scales plus offsets, against float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.ops.stored_weight import StoredWeight

ROWS, COLUMNS, PARTS = 48, 12, 3


def codes(has_offset):
  rng = np.random.default_rng(0)
  code, scale, offset = (
    rng.integers(-128, 128, (ROWS, COLUMNS)).astype(np.int8), np.float32(rng.normal(size=(ROWS, PARTS))),
    np.float32(rng.normal(size=(ROWS, PARTS))))
  exact = np.float64(code) * np.repeat(np.float64(scale), COLUMNS // PARTS, 1)
  if not has_offset:
    return StoredWeight(code, scale), exact
  return StoredWeight(code, scale, offset), exact + np.repeat(np.float64(offset), COLUMNS // PARTS, 1)


@pytest.mark.parametrize("has_offset", [False, True])
def test_rows_arrays_and_products_are_those_of_the_numbers_that_codes_stand_for(has_offset):
  stored, exact_NK = codes(has_offset)
  stored = jax.tree.map(jnp.asarray, stored)
  index, x = jnp.array([[3, 0], [47, 3]]), np.float32(np.random.default_rng(1).normal(size=(2, 5, COLUMNS)))
  np.testing.assert_allclose(stored.rows(index), exact_NK[index], rtol=1e-6, atol=1e-5)
  np.testing.assert_allclose(stored.array((12, 8, 6)), exact_NK.T.reshape(12, 8, 6), rtol=1e-6, atol=1e-5)
  np.testing.assert_allclose(jax.jit(StoredWeight.products)(stored, x), x @ exact_NK.T, rtol=1e-4, atol=1e-3)
  assert stored.is_coded and not StoredWeight(exact_NK).is_coded


def test_a_weight_of_another_model_is_refused():
  stored, _ = codes(False)
  with pytest.raises(ValueError, match="has 48 outputs of 12 inputs, and the model needs 12 of 48; load it with"):
    stored.array((48, 12))


@pytest.mark.parametrize("num_rows", [1, 2, 4, 5])
def test_rows_are_multiplied_as_their_numbers_say(num_rows):
  stored, exact_NK = codes(True)
  x = jnp.float32(np.random.default_rng(1).normal(size=(num_rows, 1, COLUMNS)))
  out = jax.jit(lambda stored, x: stored.multiply(x, (8, 6)))(stored, x)
  np.testing.assert_allclose(out, (x @ exact_NK.T).reshape(num_rows, 1, 8, 6), rtol=1e-4, atol=1e-3)
  with pytest.raises(ValueError, match="has 48 outputs of 12 inputs, and the model needs 47 of 12"):
    stored.multiply(x, (47,))


def test_a_loop_over_tokens_of_few_rows_makes_no_floats_of_the_codes():
  layers, width = 3, 256
  stacked = StoredWeight(jnp.zeros((layers, width, width), jnp.int8), jnp.ones((layers, width, 8)))

  def read(stacked, x):
    def one_token(_, x):
      return jax.lax.scan(lambda x, own: (own.multiply(own.products(x), (width,)), None), x, stacked)[0]

    return jax.lax.fori_loop(0, 9, one_token, x)

  compiled = jax.jit(read).lower(stacked, jnp.ones((3, width))).compile()
  # at most one layer's codes, cut out of the stack
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * width * width
