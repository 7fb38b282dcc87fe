import math

import numpy as np
import pytest

from lattice_jax.evaluation.compressors import compressor_bits_per_byte


def random_bytes(count, seed):
  return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


def test_noise_costs_eight_bits_and_a_copy_of_train_next_to_nothing():
  """Noise the compressors have just seen is free to those that look back; its byte frequencies do not help order-0."""
  train, noise = random_bytes(20_000, 0), random_bytes(5_000, 1)
  fresh, copy = compressor_bits_per_byte(train, noise), compressor_bits_per_byte(train, train[-5_000:])
  assert list(fresh) == ["order-0", "gzip -9", "bz2 -9", "xz -9e"]
  assert all(7.9 < value < 8.3 for value in fresh.values())
  # xz stores train alone verbatim, as noise; with the copy behind it, it codes all of it, at 1.5 % more than verbatim.
  assert copy["gzip -9"] < 0.2 and copy["xz -9e"] < 0.6 and copy["order-0"] > 7.8


def test_order_0_by_hand():
  """Train counts a: 3, b: 1, plus one each, of 4 + 256; an unseen byte costs the share of a single count."""
  bits = compressor_bits_per_byte(b"aaab", b"abc")["order-0"]
  assert bits == pytest.approx(-(math.log2(4 / 260) + math.log2(2 / 260) + math.log2(1 / 260)) / 3)


def test_an_empty_split_is_refused():
  with pytest.raises(ValueError, match="split is empty"):
    compressor_bits_per_byte(b"train", b"")
