"""What arrays hold, in numbers that no sharding changes: checksums of a checkpoint, the digest of a model."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.models.parameters import named_leaves


def checksums(tree: Any) -> dict[str, int]:
  """A checksum of the bits of every array; a sum of integers, so it does not depend on the devices."""
  return {name: int(checksum) for name, checksum in named_leaves(jax.device_get(_checksums(tree))).items()}


@jax.jit
def _checksums(tree: Any) -> Any:
  def checksum(leaf: jax.Array) -> jax.Array:
    bits, place = words_and_places(leaf)
    # odd weights that differ by position, so that a changed bit and two exchanged values both change the sum
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

  return jax.tree.map(checksum, tree)


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
