"""Local attention: each head sees the first tokens of the document and the last W, and keeps no others."""

from __future__ import annotations

from lattice_jax.ops.local.band import attend_band
from lattice_jax.ops.local.heads import ALL, HeadGroup, group_heads, join_heads, take_heads
from lattice_jax.ops.local.ring import Ring, blank_unused, empty_ring, held, num_slots, read_ring, slot_of, write_ring

__all__ = [
  "ALL", "HeadGroup", "Ring", "attend_band", "blank_unused", "empty_ring", "group_heads", "held", "join_heads",
  "num_slots", "read_ring", "slot_of", "take_heads", "write_ring"]
