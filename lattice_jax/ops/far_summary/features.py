"""Older tokens as sums over positive features of their keys, by maps that are trained: LESS (arXiv 2402.09398)."""

from __future__ import annotations

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lattice_jax.fields import check_fields, positive
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import keep_only
from lattice_jax.ops.far_summary.read import read_features

MOST = 30.0  # of a feature's logarithm, so that sums over a million tokens stay within float32


@flax.struct.dataclass
class FeatureMap:
  """An MLP for each of H heads, from vectors of width K over F hidden units to R positive features."""

  in_HKF: jax.Array
  in_bias_HF: jax.Array
  out_HFR: jax.Array
  out_bias_HR: jax.Array

  def __call__(self, x: Float[Array, "B T H K"]) -> Float[Array, "B T H R"]:
    """R^-1/2 times e to the MLP's output, float32. That is cut softly to MOST either way, so no feature is ever 0."""
    hidden_BTHF = _product("BTHK,HKF->BTHF", x.astype(jnp.float32), self.in_HKF) + self.in_bias_HF
    log_BTHR = _product("BTHF,HFR->BTHR", jax.nn.gelu(hidden_BTHF), self.out_HFR) + self.out_bias_HR
    return jnp.exp(MOST * jnp.tanh(log_BTHR / MOST)) * self.out_bias_HR.shape[-1] ** -0.5


@flax.struct.dataclass
class FeatureMaps:
  """query: φ, of every query head. key: ψ, of every key/value head."""

  query: FeatureMap
  key: FeatureMap


@flax.struct.dataclass
class FeatureSums:
  """Sums over tokens, float32; all zeros where there are none.

  value_BHRV: of features times values. weight_BHR: of features.
  """

  value_BHRV: jax.Array
  weight_BHR: jax.Array


@dataclass(frozen=True)
class Features:
  """A token weighs φ(q)·ψ(k) in the place of e^score, so that sums over tokens are all that is kept.

  A fold (`lattice_jax.ops.attention.fold`) whose keys and queries are features already, those of `FeatureMaps`: only
  the layer has the maps' parameters. It is exact in the order of tokens, in calls and in merging.

  Raises:
    ValueError: a field lies outside its domain.
  """

  features: int = positive(16, "features of a key, and of a query")

  def __post_init__(self):
    check_fields(self, "Features.")

  def init_summary(self, batch: int, heads: int, key_dim: int, value_dim: int) -> FeatureSums:
    """The summary of no tokens, whatever the width of the keys that were mapped."""
    del key_dim
    shape = batch, heads, self.features
    return FeatureSums(value_BHRV=jnp.zeros((*shape, value_dim)), weight_BHR=jnp.zeros(shape))

  def add(self, summary: FeatureSums, evicted: Evicted) -> FeatureSums:
    """The summary with the tokens that leave; what stands at others is replaced by zeros at the door.

    Raises:
      ValueError: the keys are not features.
    """
    if evicted.key_BHSK.shape[-1] != self.features:
      raise ValueError(
        f"Features.features={self.features}, and tokens leave with keys of width {evicted.key_BHSK.shape[-1]}, which "
        "are no features; map them first, with FeatureMaps.key.")
    feature_BHSR, value_BHSV = (
      x.astype(jnp.float32) for x in keep_only(evicted.leaves_BHS, (evicted.key_BHSK, evicted.value_BHSV)))
    return FeatureSums(
      value_BHRV=summary.value_BHRV + _product("BHSR,BHSV->BHRV", feature_BHSR, value_BHSV),
      weight_BHR=summary.weight_BHR + feature_BHSR.sum(2))

  def merge(self, earlier: FeatureSums, later: FeatureSums) -> FeatureSums:
    """The summary of both, which hold different tokens of one document; zeros change nothing."""
    return jax.tree.map(jnp.add, earlier, later)

  def read(
    self, q: Float[Array, "B T Q R"], summary: FeatureSums,
  ) -> tuple[Float[Array, "B T Q V"], Float[Array, "B T Q"]]:
    """Attention by features, float32, in the form that `ops.attention.merge` takes.

    q: features of the queries, Q = H·G; query head h·G + g reads the summary of head h. A query that finds no token
      gets 0 and MASKED.
    """
    return read_features(q, summary.value_BHRV, summary.weight_BHR)


def _product(subscripts: str, *arrays: jax.Array) -> jax.Array:
  return jnp.einsum(subscripts, *arrays, precision="highest")
