"""A short text of four key/value heads, two of them with the same window."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lattice_jax.memories.local.config import LocalConfig

HEADS, QUERIES, KEY, VALUE, LENGTH, SINKS = 4, 8, 6, 5, 40, 2
WINDOWS = (7, 0, 3, 7)
CONFIG = LocalConfig(sinks=SINKS, rungs=(3, 7), windows=WINDOWS)


def tokens():
  """Queries, keys and values."""
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.normal(size=(1, LENGTH, heads, width)), jnp.float32)
               for heads, width in ((QUERIES, KEY), (HEADS, KEY), (HEADS, VALUE)))


def cut(arrays, start, stop):
  return tuple(x[:, start:stop] for x in arrays)
