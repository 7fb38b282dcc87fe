"""What the rest of the code knows of gated slot attention."""

from __future__ import annotations

from lattice_jax.memories.gated_slots.cases import make_cases
from lattice_jax.memories.gated_slots.config import check
from lattice_jax.memories.gated_slots.fla import from_gated_slots
from lattice_jax.memories.gated_slots.layer import GatedSlots
from lattice_jax.memories.memory import recurrent_memory

_PASSES = 2  # of a token over a head's slots: write, read

MEMORIES = {
  "gated_slots": recurrent_memory(
    GatedSlots, "gated_slots", cases=make_cases, check=lambda model: check(model.gated_slots),
    from_fla=from_gated_slots, gates=lambda dim, config: dim * config.heads * config.slots,
    passes=lambda config: _PASSES * config.heads * config.slots * (config.key_dim + config.value_dim)),
}
