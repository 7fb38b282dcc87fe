"""What images cost without a model, on images where it can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.evaluation.image_baselines import image_bits_per_dim


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
