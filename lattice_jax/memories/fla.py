"""Weights of flash-linear-attention's layers in the shapes of ours.

A linear map is stored there as [outputs, inputs] with heads and their widths in one axis, heads first; the taps of a
convolution as [channels, 1, W] with the oldest token first, ours with the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

Params = dict[str, jnp.ndarray]


class FlaWeights:
  """Tensors of one layer by name, each of which is taken once; fp32.

  heads: of queries, `num_heads` there.
  """

  def __init__(self, tensors: Mapping[str, Any], prefix: str, heads: int):
    self._left = {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
    self.heads = heads

  def has(self, name: str) -> bool:
    return name in self._left

  def take(self, name: str) -> jnp.ndarray:
    """Raises ValueError where there is no such tensor."""
    if name not in self._left:
      raise ValueError(
        f"the layer has no tensor {name!r}, which is needed; those left are {', '.join(self._left) or 'none'}. "
        "`prefix` is what stands before the names of one layer.")
    return jnp.asarray(np.asarray(self._left.pop(name), np.float32))

  def take_up(self, name: str) -> jnp.ndarray:
    """[inputs, heads, width] of a map to all heads."""
    return self._by_head(name, self.take(name).T)

  def take_bias(self, name: str) -> jnp.ndarray:
    """[heads, width]"""
    return self._by_head(name, self.take(name))

  def take_taps(self, name: str) -> jnp.ndarray:
    """[W, heads, width]"""
    return self._by_head(name, self.take(name)[:, 0, ::-1].T)

  def take_low_rank(self, name: str) -> tuple[jnp.ndarray, jnp.ndarray]:
    """[inputs, rank] and [rank, heads, width] of two maps one after another."""
    return self.take(f"{name}.0.weight").T, self.take_up(f"{name}.1.weight")

  def check_empty(self) -> None:
    """Raises ValueError where a tensor has not been taken."""
    if self._left:
      raise ValueError(f"the layer's tensors {', '.join(self._left)} have no place in ours.")

  def _by_head(self, name: str, x: jnp.ndarray) -> jnp.ndarray:
    if x.shape[-1] % self.heads:
      raise ValueError(f"{name} makes {x.shape[-1]} numbers, which are no {self.heads} heads; is heads= num_heads?")
    return x.reshape(*x.shape[:-1], self.heads, -1)


def take_frame(weights: FlaWeights, norm: str) -> tuple[dict[str, Any], Params]:
  """(fields of a RecurrentConfig and `key_dim`, parameters) of what is around a recurrence.

  norm: name of the gain of the heads' outputs. Raises ValueError where heads share keys or have several values.
  """
  params = {name: weights.take_up(f"{name[0]}_proj.weight") for name in ("query", "key", "value")}
  out_DO = weights.take("o_proj.weight")
  params["out"] = out_DO.T.reshape(weights.heads, -1, len(out_DO))
  params["gain"] = weights.take(norm)
  key_dim, value_dim, width = (x.shape[-1] for x in (params["query"], params["value"], params["gain"]))
  if value_dim != width or params["key"].shape[-1] != key_dim:
    raise ValueError(
      f"the layer has {width} values a head and others by its projections, {value_dim} at {weights.heads} heads, or "
      "keys of another width than queries; heads that share keys (num_v_heads, num_kv_heads) have no place in ours.")
  has_conv = weights.has("q_conv1d.weight")
  if has_conv:
    params |= {f"{name}_taps": weights.take_taps(f"{name[0]}_conv1d.weight") for name in ("query", "key", "value")}
  fields = {
    "heads": weights.heads, "key_dim": key_dim, "value_dim": value_dim,
    "conv_width": len(params["query_taps"]) if has_conv else 0}
  return fields, params


def scaled_eps(norm_eps: float, key_dim: int) -> float:
  """ε of the outputs' norm here: there queries are scaled by K^(−1/2), so outputs are √K times as small."""
  return norm_eps * key_dim
