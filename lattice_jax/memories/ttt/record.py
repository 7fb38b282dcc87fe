"""What the rest of the code knows of TTT-Linear."""

from __future__ import annotations

from lattice_jax.config import ModelConfig
from lattice_jax.memories.memory import Memory, maker
from lattice_jax.memories.multiply_adds import recurrent_frame
from lattice_jax.memories.ttt.cases import make_cases
from lattice_jax.memories.ttt.config import check
from lattice_jax.memories.ttt.layer import TTTLinear

_PASSES = 4  # of a token over a head's weights: both at the start and with the steps so far, for k and for q


def _multiply_adds(model: ModelConfig, length: int) -> float:
  del length
  config = model.ttt
  gate = model.dim * config.heads
  passes = _PASSES * config.heads * config.value_dim**2
  return recurrent_frame(model.dim, config, config.value_dim) + gate + passes


MEMORIES = {
  "ttt_linear": Memory(
    make=maker(TTTLinear, "ttt"),
    multiply_adds=_multiply_adds,
    cases=make_cases,
    check=lambda model: check(model.ttt)),
}
