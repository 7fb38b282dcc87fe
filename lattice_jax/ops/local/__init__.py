"""Local attention: each head sees the first tokens of the document and the last W, and keeps no others.

`attend_band` is attention of a call's tokens to one another, `Ring` what is kept of them, and `attend_far` attention to
a summary of what was not; `Picks` are tokens between the two. All give (output, log-sum-exp), so that parts of disjoint
tokens are merged exactly.
"""

from __future__ import annotations

from lattice_jax.ops.local.band import attend_band
from lattice_jax.ops.local.far import Leaving, attend_far
from lattice_jax.ops.local.heads import ALL, HeadGroup, group_heads, join_heads, take_heads
from lattice_jax.ops.local.picks import Picks, attend_picks, choose, empty_picks
from lattice_jax.ops.local.ring import (
  Ring,
  blank_unused,
  empty_ring,
  held,
  leaving,
  num_slots,
  read_ring,
  score_leaving_ring,
  slot_of,
  write_ring,
)
from lattice_jax.ops.local.scores import Scores, score_leaving

__all__ = [
  "ALL", "HeadGroup", "Leaving", "Picks", "Ring", "Scores", "attend_band", "attend_far", "attend_picks", "blank_unused",
  "choose", "empty_picks", "empty_ring", "group_heads", "held", "join_heads", "leaving", "num_slots", "read_ring",
  "score_leaving", "score_leaving_ring", "slot_of", "take_heads", "write_ring"]
