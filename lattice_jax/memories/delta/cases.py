"""The gated delta rule as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

from lattice_jax.memories.cases import FEW, Case, Sizes, documents, gates, normal, unit
from lattice_jax.memories.delta import op as delta


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.width))
  (v,) = normal(sizes, 1, sizes.width)

  def run(inputs, impl):
    q, k, v, step, decay = inputs
    state = delta.empty_state(1, sizes.heads, sizes.width, sizes.width)
    out, state = delta.delta(q, k, v, step, decay, state, *documents(sizes), chunk_len=FEW, impl=impl)
    return out, state.memory_BHKV

  yield Case("delta", "chunks", run, (q, k, v, gates(sizes), gates(sizes)[..., None]))
