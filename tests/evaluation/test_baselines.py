"""Baselines that need no model, on bytes and images whose cost is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lattice_jax.evaluation.baselines import compressor_bits_per_byte, image_bits_per_dim


def random_bytes(count, seed):
  return np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()


def test_random_bytes_cost_eight_bits_and_a_copy_of_train_next_to_nothing():
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


def test_no_bytes_are_refused():
  with pytest.raises(ValueError, match="split is empty"):
    compressor_bits_per_byte(b"train", b"")


def test_entropies_by_hand():
  """Two values as often each: 1 bit. Their differences: +200 and −200 = +56 (modulo 256), 2 and 1 of 3 in a row."""
  image = np.tile(np.array([0, 200, 0, 200], np.uint8)[None, :, None], (2, 1, 3))
  bits = image_bits_per_dim([image, image])
  assert bits["order-0"] == 1.0
  assert bits["left residual"] == pytest.approx(2 / 3 * np.log2(3 / 2) + 1 / 3 * np.log2(3))


def test_neighbours_are_of_the_same_channel():
  image = np.broadcast_to(np.array([10, 100, 250], np.uint8), (8, 8, 3))
  bits = image_bits_per_dim([image])
  assert bits["order-0"] == pytest.approx(np.log2(3)) and bits["left residual"] == 0


def test_noise_costs_eight_bits_and_the_file_around_it():
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  bits = image_bits_per_dim([noise] * 2)
  assert list(bits) == ["order-0", "left residual", "PNG", "WebP lossless"]
  assert all(7.9 < value < 8.3 for value in bits.values())


def test_no_images_are_refused():
  with pytest.raises(ValueError, match="split is empty"):
    image_bits_per_dim([])
