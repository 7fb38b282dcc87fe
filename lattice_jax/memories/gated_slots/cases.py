"""Gated slot attention as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from lattice_jax.memories.cases import FEW, Case, Sizes, documents, gates, normal, unit
from lattice_jax.memories.gated_slots import op as gated_slots


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.width))
  (v,) = normal(sizes, 1, sizes.width)

  def run(inputs, impl):
    q, k, v, decay = inputs
    state = gated_slots.empty_state(1, sizes.heads, FEW, sizes.width, sizes.width)
    decay = jnp.broadcast_to(decay, (*decay.shape[:3], FEW))
    out, state = gated_slots.gated_slots(
      q, k, v, 1 - decay, decay, state, *documents(sizes), chunk_len=FEW, impl=impl)
    return out, state.value_BHMV

  yield Case("gated_slots", "chunks", run, (q, k, v, gates(sizes)[..., None]))
