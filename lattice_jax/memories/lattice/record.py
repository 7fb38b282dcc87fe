"""What the rest of the code knows of Lattice."""

from __future__ import annotations

from lattice_jax.memories.lattice.cases import make_cases
from lattice_jax.memories.lattice.config import check
from lattice_jax.memories.lattice.layer import Lattice
from lattice_jax.memories.memory import recurrent_memory

# Of the token scan over the slots: residual, inner products, write, lengths, read; one more where slots return.
_PASSES = 5

MEMORIES = {
  "lattice": recurrent_memory(
    Lattice, "lattice", cases=make_cases, key_dim="slots", check=lambda model: check(model.lattice),
    gates=lambda dim, config: dim * config.heads * (2 if config.forget else 1),
    passes=lambda config: (
      (_PASSES + (config.state == "returning")) * config.heads * config.slots * config.value_dim)),
}
