"""A draw decides, the same in any row and any order of arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lattice_jax.cache.policies.record import PolicyRecord
from lattice_jax.fields import seed

if TYPE_CHECKING:
  import jax

  from lattice_jax.cache.policies.views import Partitions


@dataclass(frozen=True)
class RandomConfig:
  """The draw."""

  seed: int = seed(0, "of the hash that stands for a draw")


def score(own: RandomConfig, partitions: Partitions) -> jax.Array:
  """A hash of seed, layer, head and position."""
  import jax.numpy as jnp

  def mix(x):
    """A bijection of 32-bit numbers in which every bit depends on every other."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

  position_BHNL = partitions.position_BHNL[:, :, :-1].astype(jnp.uint32)
  head_H11 = jnp.arange(position_BHNL.shape[1], dtype=jnp.uint32)[:, None, None]
  mixed = jnp.uint32(own.seed)
  for part in (partitions.layer.astype(jnp.uint32), head_H11, position_BHNL):
    mixed = mix(mixed ^ part)
  return (mixed >> 8).astype(jnp.float32)  # 24 bits are exact


POLICY = PolicyRecord(doc="the policy \"random\"", chooses="partition", score=score, section=RandomConfig)
