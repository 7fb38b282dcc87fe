"""Loss by position and by document: the edges, the sums, and what masks hide."""

from __future__ import annotations

import jax
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.data.loader import EvalBatch
from lattice_jax.evaluation.position_buckets import bucket_starts, make_buckets
from lattice_jax.evaluation.totals import Totals
from lattice_jax.memories.vq.config import VQConfig


def chunk(positions_BT, documents_BT):
  return EvalBatch(batch=None, positions_BT=positions_BT, documents_BT=documents_BT, fresh=True)


def test_edges_are_zero_half_a_block_and_doublings_of_the_block():
  model = ModelConfig(vq=VQConfig(block_len=32))
  assert bucket_starts(model, 200).tolist() == [0, 16, 32, 64, 128]
  assert bucket_starts(model, 128).tolist() == [0, 16, 32, 64]
  assert bucket_starts(ModelConfig(pattern=("attention",)), 65).tolist() == [0, 32, 64]
  assert bucket_starts(model, 1).tolist() == [0]


def test_sums_match_a_loop_over_tokens():
  starts, rng = np.array([0, 4, 16, 200]), np.random.default_rng(0)
  totals, by_bucket, by_document = Totals(starts, 6), np.zeros((2, 4)), np.zeros((2, 6))
  for _ in range(2):
    nll_BT = rng.normal(size=(3, 301)).astype(np.float32)
    positions_BT, documents_BT = rng.integers(0, 500, (3, 301)), rng.integers(-1, 5, (3, 301))
    totals.add(nll_BT, chunk(positions_BT, documents_BT))
    for nats, position, document in zip(nll_BT.flat, positions_BT.flat, documents_BT.flat, strict=True):
      if document >= 0:
        by_bucket[:, np.flatnonzero(starts <= position)[-1]] += nats, 1
        by_document[:, document] += nats, 1
  np.testing.assert_allclose(totals.by_bucket, by_bucket, rtol=1e-12)
  np.testing.assert_allclose(totals.by_document, by_document, rtol=1e-12)
  assert not by_document[:, 5].any()


def test_a_million_equal_tokens_lose_nothing():
  """In fp32 the sum would be off by more than 1e-5."""
  totals = Totals(np.array([0]), 1)
  nll_BT, zeros_BT = np.full((8, 1000), 0.1, np.float32), np.zeros((8, 1000), int)
  for _ in range(125):
    totals.add(nll_BT, chunk(zeros_BT, zeros_BT))
  np.testing.assert_allclose(totals.by_bucket[0, 0], 1e6 * float(np.float32(0.1)), rtol=1e-12)


def test_nan_outside_the_targets_is_not_seen():
  totals = Totals(np.array([0]), 1)
  totals.add(np.array([[1.0, np.nan]], np.float32), chunk(np.array([[0, 1]]), np.array([[0, -1]])))
  assert jax.tree.map(np.ndarray.tolist, (totals.by_bucket, totals.by_document)) == ([[1.0], [1.0]], [[1.0], [1.0]])


def test_table_ends_at_the_last_target_and_has_no_empty_rows():
  tokens = np.array([0.0, 2.0, 0.0, 3.0, 0.0])
  nats = tokens * np.array([0, 2, 0, 4, 0]) * np.log(2)
  buckets = make_buckets(np.array([0, 8, 16, 32, 64]), 41, nats, tokens, bytes_per_token=4.0)
  assert [(b.start, b.stop, b.tokens) for b in buckets] == [(8, 16, 2), (32, 41, 3)]
  np.testing.assert_allclose([b.bits_per_byte for b in buckets], [0.5, 1.0])


def test_the_end_is_behind_the_last_target_whatever_the_windows_hold():
  totals = Totals(np.array([0]), 1)
  assert totals.end == 0
  for positions, documents in (([7, 9], [0, -1]), ([3, 5], [0, 0]), ([11, 12], [-1, -1])):
    totals.add(np.zeros((1, 2), np.float32), chunk(np.array([positions]), np.array([documents])))
  assert totals.end == 8
