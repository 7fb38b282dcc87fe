"""What a window loses of a head: the memory itself with that window, beside full attention."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.inspect.windows.errors import head_errors, rungs_of, with_everything
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.memories.local.op import local_attention

LENGTH, FIRST, STRIDE = 33, 17, 5
CONFIG = LocalConfig(sinks=2, rungs=(4, 9, 64), windows=(4,))


def make_inputs(seed=0):
  """Two key/value heads, two query heads each."""
  keys = jax.random.split(jax.random.key(seed), 4)
  shapes = (2, LENGTH, 4, 8), (2, LENGTH, 2, 8), (2, LENGTH, 2, 6), (4, 6, 5)
  return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def of_memory(config, q, k, v, window):
  return local_attention(q, k, v, config=dataclasses.replace(config, windows=(window,)))[0]


@pytest.mark.parametrize("far", ["none", "mean"])
def test_errors_are_those_of_the_memory_itself(far):
  config = dataclasses.replace(CONFIG, far=far)
  *qkv, out_QVD = make_inputs()
  found = head_errors(config, *qkv, out_QVD, first=FIRST, stride=STRIDE)
  full_BTQV = of_memory(config, *qkv, 0)
  for number, rung in enumerate(config.rungs):
    off_BTQV = np.asarray(full_BTQV - of_memory(config, *qkv, rung))[:, FIRST::STRIDE]
    full_BNQV = np.asarray(full_BTQV)[:, FIRST::STRIDE]
    for head in range(2):
      own = slice(2 * head, 2 * head + 2)
      square = (np.einsum("BNQV,QVD->BND", off_BTQV[:, :, own], out_QVD[own])**2).sum(-1).mean()
      relative = (np.linalg.norm(off_BTQV[:, :, own], axis=-1) / np.linalg.norm(full_BNQV[:, :, own], axis=-1)).mean()
      np.testing.assert_allclose(found.square_RH[number, head], square, rtol=1e-4, atol=1e-8)
      np.testing.assert_allclose(found.relative_RH[number, head], relative, rtol=1e-4, atol=1e-5)
  y_BND = np.einsum("BNQV,QVD->BND", full_BNQV, out_QVD)
  np.testing.assert_allclose(found.whole, (y_BND**2).sum(-1).mean(), rtol=1e-4)
  assert np.all(np.asarray(found.square_RH[:2]) > 1e-3)


def test_mass_is_the_weight_of_what_is_seen():
  q, k, v, out_QVD = make_inputs()
  found = head_errors(CONFIG, q, k, v, out_QVD, first=FIRST, stride=STRIDE)
  k_BTQK = jnp.repeat(k, 2, axis=2)
  score_BQTS = np.asarray(jnp.einsum("BTQK,BSQK->BQTS", q, k_BTQK)) * 8**-0.5
  back_TS = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
  weight_BQTS = np.asarray(jax.nn.softmax(np.where(back_TS >= 0, score_BQTS, -np.inf), axis=-1))
  for number, rung in enumerate(CONFIG.rungs):
    sees_TS = (back_TS < rung) | (np.arange(LENGTH) < CONFIG.sinks)
    mass_BQN = (weight_BQTS * sees_TS).sum(-1)[:, :, FIRST::STRIDE]
    np.testing.assert_allclose(found.mass_RH[number], mass_BQN.reshape(2, 2, 2, -1).mean((0, 2, 3)), rtol=1e-4)


def test_mass_grows_with_the_window_and_is_all_where_it_holds_the_text():
  *qkv, out_QVD = make_inputs(1)
  mass_RH = np.asarray(head_errors(CONFIG, *qkv, out_QVD, first=FIRST, stride=STRIDE).mass_RH)
  assert np.all(np.diff(mass_RH, axis=0) > 0)
  np.testing.assert_allclose(mass_RH[-1], 1, rtol=1e-5)


def test_rungs_that_hide_something_and_everything():
  assert rungs_of(CONFIG, LENGTH) == (4, 9, 0)
  assert rungs_of(CONFIG, 67) == (4, 9, 64, 0)
  assert rungs_of(CONFIG, 66) == (4, 9, 0)
  np.testing.assert_array_equal(with_everything(np.ones((2, 3))), [[1] * 3, [1] * 3, [0] * 3])
