"""Loss by position: the edges, the sums, and what masks hide."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig, VQConfig
from lattice_jax.evaluation.buckets import bucket_starts, bucket_sums, make_buckets


def test_edges_are_zero_half_a_block_and_doublings_of_the_block():
  model = ModelConfig(vq=VQConfig(block_len=32))
  assert bucket_starts(model, 200).tolist() == [0, 16, 32, 64, 128]
  assert bucket_starts(model, 128).tolist() == [0, 16, 32, 64]
  assert bucket_starts(ModelConfig(pattern=("attention",)), 65).tolist() == [0, 32, 64]
  assert bucket_starts(model, 1).tolist() == [0]


def test_sums_by_bucket_match_a_loop_over_tokens():
  batch, length, starts = 3, 301, np.array([0, 4, 16, 200], np.int32)
  rng = np.random.default_rng(0)
  values_BT, positions_BT = rng.normal(size=(batch, length)), rng.integers(0, 500, (batch, length))
  weights_BT = (rng.random((batch, length)) < 0.7).astype(np.float32)
  sums_BNE = bucket_sums(*map(jnp.asarray, (values_BT.astype(np.float32), weights_BT, positions_BT, starts)))
  expected = np.zeros(4)
  for value, weight, position in zip(values_BT.flat, weights_BT.flat, positions_BT.flat, strict=True):
    expected[np.flatnonzero(starts <= position)[-1]] += value * weight
  np.testing.assert_allclose(np.asarray(sums_BNE, np.float64).sum((0, 1)), expected, rtol=1e-5)


def test_a_weight_of_zero_hides_nan():
  values, weights = jnp.array([[1.0, jnp.nan]]), jnp.array([[1.0, 0.0]])
  sums = bucket_sums(values, weights, jnp.array([[0, 1]]), jnp.array([0]))
  assert float(sums.sum()) == 1.0


def test_table_ends_at_the_longest_position_and_leaves_empty_buckets_blank():
  nats, tokens = np.array([4 * np.log(2), 0.0]), np.array([2.0, 0.0])
  buckets = make_buckets(np.array([0, 8]), 20, nats, tokens, bytes_per_token=4.0)
  assert [(b.start, b.stop, b.tokens) for b in buckets] == [(0, 8, 2), (8, 20, 0)]
  np.testing.assert_allclose(buckets[0].bits_per_byte, 0.5)
  assert buckets[1].bits_per_byte is None
