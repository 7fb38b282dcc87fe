"""Layers of flash-linear-attention (fla), with their weights, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from lattice_jax.memories.fla import FlaWeights
from lattice_jax.memories.registry import FOLDERS, find_memory


def from_fla(
  memory: str, tensors: Mapping[str, Any], *, heads: int, prefix: str = "", norm_eps: float = 1e-5,
  allow_neg_eigval: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
  """The `faithful` layer that computes what fla's does, and the variables for its `apply`; see docs/fla.md.

  Args:
    memory: "gla", "scalar_decay" (Mamba-2), "deltanet", "gated_deltanet", "kimi_delta" or "gated_slots".
    tensors: the layer's tensors by fla's names, as float arrays; of a whole model with `prefix`, such as
      "model.layers.3.attn.".
    heads, norm_eps, allow_neg_eigval: of fla's config: its `num_heads`, and two numbers that no tensor shows.

  Raises:
    ValueError: a tensor is missing, has no place in ours, or has a shape that does not fit.
  """
  convert = find_memory(memory).from_fla
  if convert is None:
    known = ", ".join(name for name in FOLDERS if find_memory(name).from_fla)
    raise ValueError(
      f"memory={memory} has no counterpart among the layers of flash-linear-attention; use one of {known}.")
  weights = FlaWeights(tensors, prefix, heads)
  layer, params = convert(weights, norm_eps, allow_neg_eigval)
  weights.check_empty()
  return layer, {"params": params}
