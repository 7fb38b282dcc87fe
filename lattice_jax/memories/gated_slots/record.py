"""What the rest of the code knows of gated slot attention."""

from __future__ import annotations

from lattice_jax.config import ModelConfig
from lattice_jax.memories.gated_slots.cases import make_cases
from lattice_jax.memories.gated_slots.layer import GatedSlots
from lattice_jax.memories.memory import Memory, maker
from lattice_jax.memories.multiply_adds import recurrent_frame

_PASSES = 2  # of a token over a head's slots: write, read


def _multiply_adds(model: ModelConfig, length: int) -> float:
  del length
  config = model.gated_slots
  gates = model.dim * config.heads * config.slots
  passes = _PASSES * config.heads * config.slots * (config.key_dim + config.value_dim)
  return recurrent_frame(model.dim, config, config.key_dim) + gates + passes


MEMORIES = {
  "gated_slots": Memory(
    make=maker(GatedSlots, "gated_slots"), multiply_adds=_multiply_adds, cases=make_cases)}
