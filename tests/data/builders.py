"""Sources whose token at place i tells i, so that a test can see where a batch was read."""

from __future__ import annotations

import numpy as np

from lattice_jax.data.sources import Source

FIRST_TOKEN = 10


def numbered_source(*lengths: int) -> Source:
  """Documents of these lengths; the token at flat index i is FIRST_TOKEN + i."""
  num_tokens = sum(lengths)
  return Source(
    tokens=(FIRST_TOKEN + np.arange(num_tokens)).astype(np.int32),
    offsets=np.cumsum([0, *lengths], dtype=np.int64),
    num_bytes=num_tokens,
    name="numbered",
    split="train",
    fingerprint=f"numbered {lengths}")
