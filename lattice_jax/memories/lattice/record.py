"""What the rest of the code knows of Lattice."""

from __future__ import annotations

from lattice_jax.config import ModelConfig
from lattice_jax.memories.lattice.cases import make_cases
from lattice_jax.memories.lattice.config import check
from lattice_jax.memories.lattice.layer import Lattice
from lattice_jax.memories.memory import Memory, maker
from lattice_jax.memories.multiply_adds import recurrent_frame

_PASSES = 5  # of the token scan over the slots: residual, inner products, write, lengths, read


def _multiply_adds(model: ModelConfig, length: int) -> float:
  del length
  lattice = model.lattice
  gates = model.dim * lattice.heads * (2 if lattice.forget else 1)
  passes = _PASSES * lattice.heads * lattice.slots * lattice.value_dim
  return recurrent_frame(model.dim, lattice, lattice.slots) + gates + passes


MEMORIES = {
  "lattice": Memory(
    make=maker(Lattice, "lattice"),
    multiply_adds=_multiply_adds,
    cases=make_cases,
    check=lambda model: check(model.lattice)),
}
