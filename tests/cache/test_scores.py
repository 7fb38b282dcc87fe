"""Scores of policies that look at keys alone, or at nothing, against their definitions in numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.policies import keydiff, knorm, random
from lattice_jax.cache.policies.views import Partitions

SHAPE = 2, 2, 3, 5  # rows, heads, partitions, tokens of one


def partitions(layer=0):
  rng = np.random.default_rng(0)
  key, value = (jnp.asarray(rng.normal(size=(*SHAPE, 4)), jnp.float32) for _ in range(2))
  position = jnp.broadcast_to(jnp.arange(15, dtype=jnp.int32).reshape(3, 5), SHAPE)
  return Partitions(key_BHNLK=key, value_BHNLV=value, position_BHNL=position, layer=jnp.int32(layer))


def test_short_keys_and_keys_unlike_the_mean_score_highest():
  key = np.float64(partitions().key_BHNLK)[:, :, :-1]
  length = np.linalg.norm(key, axis=-1)
  np.testing.assert_allclose(knorm.score(None, partitions()), -length, rtol=1e-5)
  unit = key / length[..., None]
  mean = unit.mean(3, keepdims=True)
  cosine = (unit * mean).sum(-1) / np.linalg.norm(mean, axis=-1)
  np.testing.assert_allclose(keydiff.score(None, partitions()), -cosine, rtol=1e-4, atol=1e-5)


def test_random_scores_depend_on_seed_layer_head_and_position_alone():
  plain = np.asarray(random.score(random.RandomConfig(), partitions()))
  np.testing.assert_array_equal(plain[0], plain[1])
  assert len(np.unique(plain[0])) == plain[0].size
  for seed, layer in ((1, 0), (0, 1)):
    assert (np.asarray(random.score(random.RandomConfig(seed), partitions(layer))) != plain).all()
