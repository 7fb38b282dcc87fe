"""The short convolution against its definition, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.ops.documents import document_runs
from lattice_jax.ops.short_conv import short_conv
from tests.contract.harness import quick_jit

ROWS, LENGTH, WIDTH = 3, 9, 4
# Rows go on with the state's document 1 and then change it, or begin anew; the last two tokens of row 2 are invalid.
IDS = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 1, 1, 1, 1, 3], [5, 5, 5, 5, 5, 5, 5, 0, 0]])
VALID = np.array([[True] * 9, [True] * 9, [True] * 7 + [False] * 2])


def test_taps_reach_back_into_the_same_document_only():
  rng = np.random.default_rng(0)
  x, taps = rng.normal(size=(ROWS, LENGTH, 1, 2)), rng.normal(size=(WIDTH, 1, 2))
  tail = rng.normal(size=(ROWS, WIDTH - 1, 1, 2))
  tail[1, 0] = 0  # that document had two tokens so far

  run_BT = document_runs(jnp.asarray(IDS), jnp.asarray(VALID), jnp.ones(ROWS, jnp.int32))
  got, after = quick_jit(short_conv)(*(jnp.asarray(array, jnp.float32) for array in (x, taps, tail)), run_BT)
  for row in range(ROWS):
    history, document = list(tail[row]), 1
    for t in range(VALID[row].sum()):
      if IDS[row, t] != document:
        history, document = [np.zeros((1, 2))] * (WIDTH - 1), IDS[row, t]
      history = [*history[-(WIDTH - 1):], x[row, t]]
      want = sum(tap * past for tap, past in zip(taps, reversed(history), strict=True))
      np.testing.assert_allclose(got[row, t], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after[row], np.stack(history[-(WIDTH - 1):]), rtol=1e-6)


def test_what_stands_at_invalid_tokens_changes_nothing():
  rng = np.random.default_rng(0)
  x, taps, tail = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (
    (ROWS, LENGTH, 1, 2), (WIDTH, 1, 2), (ROWS, WIDTH - 1, 1, 2)))
  is_valid = jnp.asarray(VALID)[..., None, None]
  run_BT = document_runs(jnp.asarray(IDS), jnp.asarray(VALID), jnp.ones(ROWS, jnp.int32))

  def loss(x, taps, tail):
    y, after = short_conv(x, taps, tail, run_BT)
    y = jnp.where(is_valid, y, 0)
    return jnp.sin(y).sum() + jnp.sin(after).sum(), (y, after)

  run = quick_jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  dirty = run(jnp.where(is_valid, x, 1e9), taps, tail)
  jax.tree.map(np.testing.assert_array_equal, dirty, run(x, taps, tail))
