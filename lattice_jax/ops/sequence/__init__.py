"""Calls whose tokens lie on several devices, each of which has one stretch of every row.

A memory's op is given as a function (constants, tokens, state) → (outputs, next state, sums):

  constants: tree of arrays that all tokens share, such as parameters.
  tokens: tree of arrays [B, T, …], as are the outputs.
  state: tree of arrays [B, …].
  sums: tree of arrays that add up over rows and tokens.

Tokens are split by the axis `AXIS` of the mesh in use (`jax.set_mesh`), as docs/devices.md has it. Without
such an axis, and for a call of one token, every function here is the plain call.
"""

from __future__ import annotations

from lattice_jax.ops.sequence.axis import (
  AXIS,
  check_reach,
  each_alone,
  hand_on,
  lay_out,
  num_shards,
  rows_of_a_device,
  split_tokens,
  take_from,
)
from lattice_jax.ops.sequence.between import documents_between
from lattice_jax.ops.sequence.gather import with_all_keys
from lattice_jax.ops.sequence.halo import with_halo, with_those_before
from lattice_jax.ops.sequence.prefix import prefix_scan
from lattice_jax.ops.sequence.relay import relay, relay_call
from lattice_jax.ops.sequence.ring import with_ring_of_keys
from lattice_jax.ops.sequence.some import attend_some

__all__ = [
  "AXIS", "attend_some", "check_reach", "documents_between", "each_alone", "hand_on", "lay_out", "num_shards",
  "prefix_scan", "relay", "relay_call", "rows_of_a_device", "split_tokens", "take_from", "with_all_keys", "with_halo",
  "with_ring_of_keys", "with_those_before"]
