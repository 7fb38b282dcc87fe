"""Parameters: how many there are, what they hold, and floating-point operations a token, by formula."""

from __future__ import annotations

import hashlib
import json
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


def words_and_places(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  """uint32 of every element: its bits, and its number in row-major order modulo 2^32."""
  word = leaf.astype(jnp.uint32)
  if jnp.issubdtype(leaf.dtype, jnp.floating):
    word = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
  place = jnp.zeros(leaf.shape, jnp.uint32)
  for axis in range(leaf.ndim):
    stride = math.prod(leaf.shape[axis + 1:]) % 2**32
    place += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
  return word, place


def content_digest(tree: Any) -> str:
  """32 hex digits of what the arrays hold, by name: the same wherever they were read, however they are sharded."""
  sums = named_leaves(jax.device_get(jax.tree.map(_sum_of_hashes, tree)))
  named = {name: int(total) for name, total in sums.items()}
  return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]


@jax.jit
def _sum_of_hashes(leaf: jax.Array) -> jax.Array:
  """Of every element's bits and place; as a sum of integers it depends on no order."""
  word, place = words_and_places(leaf)
  word ^= jnp.uint32(0x9E3779B9) * place
  # not linear, so that a change of all elements alike, such as of their signs, does not cancel out
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    word = (word ^ (word >> shift)) * jnp.uint32(factor)
  return jnp.sum(word ^ (word >> 16), dtype=jnp.uint32)


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
  """Multiply-adds count two; forward and backward (three forwards) of one token, mean over a sequence.

  Analytic, because XLA's own count takes the body of a loop once.
  """
  mlp = 0 if config.block == "gau" else config.dim * config.mlp_dim * (3 if config.mlp == "swiglu" else 2)
  per_pattern = sum(find_memory(name).multiply_adds(config, seq_len) + mlp for name in config.pattern)
  layers = per_pattern * config.layers / len(config.pattern)
  return 6.0 * (layers + config.dim * config.vocab)
