"""The frequencies of stretched models equal a second transcription of the published rules, one pair at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lattice_jax.ops.rotary import scaled_frequencies
from lattice_jax.ops.rotary_config import RopeScalingConfig


def yarn(theta, width, *, factor, original, fast=32.0, slow=1.0, truncate=True):
  """arXiv 2309.00071, eq. 17 to 23, with the ends of the ramp rounded outwards or not."""
  def pair_that_turns(times):
    return width * math.log(original / (2 * math.pi * times)) / (2 * math.log(theta))

  low, high = pair_that_turns(fast), pair_that_turns(slow)
  if truncate:
    low, high = float(math.floor(low)), float(math.ceil(high))
  low, high = max(low, 0.0), min(high, width - 1.0)
  if low == high:
    high += 0.001
  frequencies = []
  for pair in range(width // 2):
    plain = theta ** (-2 * pair / width)
    kept = 1 - min(max((pair - low) / (high - low), 0.0), 1.0)
    frequencies.append(plain * kept + plain / factor * (1 - kept))
  return np.array(frequencies)


def llama3(theta, width, *, factor, original, low=1.0, high=4.0):
  frequencies = []
  for pair in range(width // 2):
    plain = theta ** (-2 * pair / width)
    wavelength = 2 * math.pi / plain
    if wavelength < original / high:
      frequencies.append(plain)
    elif wavelength > original / low:
      frequencies.append(plain / factor)
    else:
      smooth = (original / wavelength - low) / (high - low)
      frequencies.append((1 - smooth) * plain / factor + smooth * plain)
  return np.array(frequencies)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("theta", "width", "original", "fast", "slow"), [
  (150_000.0, 64, 4096, 32.0, 1.0), (10_000.0, 128, 4096, 32.0, 1.0), (1e6, 128, 32_768, 32.0, 1.0),
  (100.0, 16, 64, 32.0, 1.0), (1e6, 64, 8192, 8.0, 2.0), (100.0, 8, 6, 32.0, 0.9)])
def test_yarn(theta, width, original, fast, slow, truncate):
  scaling = RopeScalingConfig(
    kind="yarn", factor=32.0, original_len=original, beta_fast=fast, beta_slow=slow, truncate=truncate)
  wanted = yarn(theta, width, factor=32.0, original=original, fast=fast, slow=slow, truncate=truncate)
  np.testing.assert_allclose(scaled_frequencies(scaling, theta, width // 2), wanted, rtol=1e-12)


def test_yarn_without_truncation_rises_between_pairs():
  def share_of_slow(truncate):
    scaling = RopeScalingConfig(kind="yarn", factor=32.0, original_len=4096, truncate=truncate)
    plain_K = 150_000.0 ** (-np.arange(32) / 32)
    return (1 - scaled_frequencies(scaling, 150_000.0, 32) / plain_K) / (1 - 1 / 32)

  # from pair 8.093 to pair 17.398, and from 8 to 18
  np.testing.assert_allclose(share_of_slow(False)[[8, 9, 17, 18]], [0, 0.0974956, 0.9572258, 1], atol=1e-6)
  np.testing.assert_allclose(share_of_slow(True)[[8, 9, 17, 18]], [0, 0.1, 0.9, 1], atol=1e-6)


@pytest.mark.parametrize(("theta", "width", "original", "factor"), [
  (500_000.0, 128, 8192, 8.0), (500_000.0, 64, 8192, 32.0), (100.0, 16, 64, 8.0)])
def test_llama3(theta, width, original, factor):
  scaling = RopeScalingConfig(kind="llama3", factor=factor, original_len=original)
  np.testing.assert_allclose(
    scaled_frequencies(scaling, theta, width // 2), llama3(theta, width, factor=factor, original=original), rtol=1e-12)


def test_linear_divides_all():
  scaling = RopeScalingConfig(kind="linear", factor=4.0)
  np.testing.assert_allclose(
    scaled_frequencies(scaling, 10_000.0, 32), 10_000.0 ** (-np.arange(32) / 32) / 4, rtol=1e-12)
