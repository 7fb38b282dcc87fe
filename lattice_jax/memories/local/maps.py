"""The maps that make features of queries and keys, as parameters of a layer and as arrays by the same names."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax

from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import SummaryConfig
from lattice_jax.modules import offset, weight
from lattice_jax.ops.far_summary import FeatureMap, FeatureMaps

_PARTS = {"in": "in_HKF", "in_bias": "in_bias_HF", "out": "out_HFR", "out_bias": "out_bias_HR"}


def declare_maps(module: nn.Module, attention: AttentionConfig, summary: SummaryConfig) -> FeatureMaps:
  """The maps of a layer, whose weights decay and whose biases are zero at the start.

  So their logarithms start near 0: a token that is far weighs about as much as one with the score 0.
  """
  hidden, features = summary.hidden, summary.features

  def declare(name: str, heads: int, axis: str) -> FeatureMap:
    return FeatureMap(
      in_HKF=weight(
        module, f"{name}_in", (heads, attention.key_dim, hidden), (axis, "key", "hidden"), fan_in=attention.key_dim),
      in_bias_HF=offset(module, f"{name}_in_bias", (heads, hidden), (axis, "hidden")),
      out_HFR=weight(module, f"{name}_out", (heads, hidden, features), (axis, "hidden", "feature"), fan_in=hidden),
      out_bias_HR=offset(module, f"{name}_out_bias", (heads, features), (axis, "feature")))

  return FeatureMaps(
    query=declare("far_query", attention.heads, "heads"), key=declare("far_key", attention.kv_heads, "kv_heads"))


def map_shapes(attention: AttentionConfig, summary: SummaryConfig) -> dict[str, tuple[int, ...]]:
  """Of one layer's parameters, by the names that they have in it."""
  width, hidden, features = attention.key_dim, summary.hidden, summary.features
  return {
    f"far_{name}_{part}": (heads, *shape)
    for name, heads in (("query", attention.heads), ("key", attention.kv_heads))
    for part, shape in (
      ("in", (width, hidden)), ("in_bias", (hidden,)), ("out", (hidden, features)), ("out_bias", (features,)))}


def from_arrays(arrays: Mapping[str, jax.Array]) -> FeatureMaps:
  """The maps from a layer's parameters, among which there may be others; with axes in front, of several layers."""
  return FeatureMaps(*(
    FeatureMap(**{field: arrays[f"far_{name}_{part}"] for part, field in _PARTS.items()})
    for name in ("query", "key")))


def to_arrays(maps: FeatureMaps) -> dict[str, jax.Array]:
  """Undoes `from_arrays`."""
  return {
    f"far_{name}_{part}": getattr(getattr(maps, name), field) for name in ("query", "key")
    for part, field in _PARTS.items()}
