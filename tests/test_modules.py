"""Starts of weights, and the feed-forward sub-layer, by hand."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.config import ModelConfig
from lattice_jax.models.mlp import MLP
from lattice_jax.modules import RMSNorm, weight


class Weights(nn.Module):
  """One weight of many inputs."""

  @nn.compact
  def __call__(self):
    return weight(self, "w", (400, 50), ("embed", "mlp"), fan_in=400)


def test_weights_start_with_variance_one_over_their_inputs():
  w = Weights().init_with_output(jax.random.key(0))[0]
  np.testing.assert_allclose(np.asarray(meta.unbox(w)).var(), 1 / 400, rtol=0.05)


@pytest.mark.parametrize("kind", ["swiglu", "squared_relu"])
def test_the_mlp_is_its_formula(kind):
  x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  mlp = MLP(ModelConfig(dim=4, mlp_dim=5, mlp=kind))
  params = meta.unbox(mlp.init(jax.random.key(0), jnp.asarray(x)))["params"]
  up = x @ params["up"]
  hidden = np.maximum(up, 0) ** 2
  if kind == "swiglu":
    gate = x @ params["gate"]
    hidden = gate / (1 + np.exp(-gate)) * up
  got = mlp.apply({"params": params}, jnp.asarray(x))
  np.testing.assert_allclose(got, hidden @ params["down"], rtol=1e-5, atol=1e-6)


def test_the_norm_divides_by_the_root_mean_square_and_multiplies_with_its_gain():
  x, gain = np.random.default_rng(1).normal(size=(2, 1, 4)).astype(np.float32), np.arange(1.0, 5.0, dtype=np.float32)
  got = RMSNorm(has_gain=True, has_bias=False, eps=0.5).apply({"params": {"gain": gain}}, jnp.asarray(x))
  np.testing.assert_allclose(got, x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5) * gain, rtol=1e-5)
