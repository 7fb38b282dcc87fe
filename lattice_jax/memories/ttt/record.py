"""What the rest of the code knows of TTT-Linear."""

from __future__ import annotations

from lattice_jax.memories.memory import recurrent_memory
from lattice_jax.memories.ttt.cases import make_cases
from lattice_jax.memories.ttt.config import TTTConfig, check
from lattice_jax.memories.ttt.layer import TTTLinear

_PASSES = 4  # of a token over a head's weights: both at the start and with the steps so far, for k and for q


def _shared(dim: int, config: TTTConfig) -> int:
  """Of the published layer, which has one projection for queries and keys and no convolution over values."""
  return config.heads * config.value_dim * (dim + config.conv_width)


MEMORIES = {
  "ttt_linear": recurrent_memory(
    TTTLinear, "ttt", cases=make_cases, key_dim="value_dim", check=lambda model: check(model.ttt),
    gates=lambda dim, config: dim * config.heads, shared=_shared,
    passes=lambda config: _PASSES * config.heads * config.value_dim**2),
}
