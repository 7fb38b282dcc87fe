"""Ratios and units."""

from __future__ import annotations

import math

import jax.numpy as jnp
import pytest

from lattice_jax.metrics import bits_per_byte, ratio


def test_ratio_of_nothing_is_zero():
  assert ratio((jnp.asarray(3.0), jnp.asarray(4.0))) == 0.75
  assert ratio((jnp.asarray(0.0), jnp.asarray(0.0))) == 0.0


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight():
  assert bits_per_byte(math.log(256), tokens_per_byte=1.0) == pytest.approx(8.0)
  assert bits_per_byte(math.log(16), tokens_per_byte=0.25) == pytest.approx(1.0)
