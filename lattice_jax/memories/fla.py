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

  def share(self) -> int:
    """How many heads of queries have the same keys and values: `num_heads` over `num_kv_heads`; 1 where it is none."""
    queries, keys = (len(self._left[name]) if name in self._left else 0 for name in ("q_proj.weight", "k_proj.weight"))
    share = queries // keys if keys and queries % keys == 0 else 1
    return share if self.heads % share == 0 else 1

  def take(self, name: str) -> jnp.ndarray:
    """Raises ValueError where there is no such tensor."""
    if name not in self._left:
      raise ValueError(
        f"the layer has no tensor {name!r}, which is needed; those left are {', '.join(self._left) or 'none'}. "
        "`prefix` is what stands before the names of one layer.")
    return jnp.asarray(np.asarray(self._left.pop(name), np.float32))

  def take_up(self, name: str, share: int = 1) -> jnp.ndarray:
    """[inputs, heads, width] of a map to all heads. share: how many heads one of the map's stands for."""
    return self._by_head(name, self.take(name).T, share)

  def take_bias(self, name: str, share: int = 1) -> jnp.ndarray:
    """[heads, width]"""
    return self._by_head(name, self.take(name), share)

  def take_taps(self, name: str, share: int = 1) -> jnp.ndarray:
    """[W, heads, width]"""
    return self._by_head(name, newest_first(self.take(name)), share)

  def take_low_rank(self, name: str, share: int = 1) -> tuple[jnp.ndarray, jnp.ndarray]:
    """[inputs, rank] and [rank, heads, width] of two maps one after another."""
    return self.take(f"{name}.0.weight").T, self.take_up(f"{name}.1.weight", share)

  def take_down(self, name: str) -> jnp.ndarray:
    """[heads, width, outputs] of a map from all heads."""
    out_DO = self.take(name)
    return jnp.moveaxis(self._by_head(name, out_DO), 0, -1)

  def take_heads(self, name: str) -> jnp.ndarray:
    """[heads], of a tensor that has one number a head, whatever its axes."""
    x = self.take(name)
    if x.size != self.heads:
      raise ValueError(f"{name} has {x.size} numbers, and ours one for each of {self.heads} heads.")
    return x.reshape(-1)

  def check_empty(self) -> None:
    """Raises ValueError where a tensor has not been taken."""
    if self._left:
      raise ValueError(f"the layer's tensors {', '.join(self._left)} have no place in ours.")

  def _by_head(self, name: str, x: jnp.ndarray, share: int = 1) -> jnp.ndarray:
    """[…, heads · width / share] → […, heads, width]; neighbours in the axis of heads are alike where they share."""
    heads = self.heads // share
    if x.shape[-1] % heads:
      raise ValueError(f"{name} makes {x.shape[-1]} numbers, which are no {heads} heads; is heads= num_heads?")
    return jnp.repeat(x.reshape(*x.shape[:-1], heads, -1), share, axis=-2)


def newest_first(tap_C1W: jnp.ndarray) -> jnp.ndarray:
  """[W, channels] of the taps of a convolution."""
  return tap_C1W[:, 0, ::-1].T


def take_frame(
  weights: FlaWeights, norm: str, *, share: int = 1, is_norm_joint: bool = False) -> tuple[dict[str, Any], Params]:
  """(fields of a PublishedConfig and `key_dim`, parameters) of what is around a recurrence.

  norm: name of the gain of outputs, that of every head or, where it is joint, of all. share: how many heads have the
  same keys and values. Raises ValueError where heads have several values, or widths contradict one another.
  """
  params = {"query": weights.take_up("q_proj.weight")}
  params |= {name: weights.take_up(f"{name[0]}_proj.weight", share) for name in ("key", "value")}
  params["out"] = weights.take_down("o_proj.weight")
  params["gain"] = weights.take_bias(norm) if is_norm_joint else weights.take(norm)
  key_dim, value_dim = (params[name].shape[-1] for name in ("query", "value"))
  width = params["gain"].shape[-1]
  if value_dim != width or params["out"].shape[1] != width or params["key"].shape[-1] != key_dim:
    raise ValueError(
      f"the layer has {width} values a head and others by its projections, {value_dim} at {weights.heads} heads, or "
      "keys of another width than queries; heads of values that share keys (num_v_heads) have no place in ours.")
  has_conv = weights.has("q_conv1d.weight")
  if has_conv:
    params["query_taps"] = weights.take_taps("q_conv1d.weight")
    params |= {f"{name}_taps": weights.take_taps(f"{name[0]}_conv1d.weight", share) for name in ("key", "value")}
  fields = {
    "heads": weights.heads, "key_dim": key_dim, "value_dim": value_dim, "faithful": True,
    "conv_width": len(params["query_taps"]) if has_conv else 0}
  return fields, params


def refuse_steps(allow_neg_eigval: bool, layer: str) -> None:
  """Raises ValueError where steps were to be doubled of a layer that has none."""
  if allow_neg_eigval:
    raise ValueError(f"allow_neg_eigval is of the delta rule; {layer} has no step.")
