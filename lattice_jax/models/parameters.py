"""Parameters: how many there are, how they are named, and floating-point operations a token, by formula."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig
from lattice_jax.memories.registry import find_memory
from lattice_jax.ops.stored_weight import StoredWeight


def count_parameters(tree: Any) -> int:
  """Number of array elements of a tree of arrays or shapes; scales of stored weights are none."""
  leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, StoredWeight))
  return sum(math.prod(leaf.code_NK.shape if isinstance(leaf, StoredWeight) else leaf.shape) for leaf in leaves)


def grow_vocabulary(params: Any, vocab: int, like: int | None = None) -> Any:
  """The parameters of a decoder with rows up to `vocab` in embedding, head and its bias.

  like: the token whose row each new one copies; the mean of all rows if None.
  """
  grown = dict(params)
  for name, axis in (("embedding", 0), ("head", 1), ("head_bias", 0)):
    if name in params:
      rows = jnp.moveaxis(params[name], axis, 0)
      new = rows.mean(0, dtype=jnp.float32).astype(rows.dtype) if like is None else rows[like]
      added = jnp.broadcast_to(new, (vocab - len(rows), *new.shape))
      grown[name] = jnp.moveaxis(jnp.concatenate([rows, added]), 0, axis)
  return grown


def named_leaves(tree: Any, separator: str = "/") -> dict[str, Any]:
  """The leaves by their paths, as in "params/embedding"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator=separator): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
  """Multiply-adds count two; forward and backward (three forwards) of one token, mean over a sequence.

  Analytic, because XLA's own count takes the body of a loop once.
  """
  mlp = 0 if config.block == "gau" else config.dim * config.mlp_dim * (3 if config.mlp == "swiglu" else 2)
  per_pattern = sum(find_memory(name).multiply_adds(config, seq_len) + mlp for name in config.pattern)
  layers = per_pattern * config.layers / len(config.pattern)
  return 6.0 * (layers + config.dim * config.vocab)
