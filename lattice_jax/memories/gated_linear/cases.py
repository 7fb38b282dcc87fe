"""Linear attention with decay as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

from lattice_jax.memories.cases import FEW, Case, Sizes, documents, gates, normal, unit
from lattice_jax.memories.gated_linear import op as gated_linear


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.width))
  (v,) = normal(sizes, 1, sizes.width)

  def run(inputs, impl):
    q, k, v, decay = inputs
    state = gated_linear.empty_state(1, sizes.heads, sizes.width, sizes.width)
    out, state = gated_linear.gated_linear(q, k, v, decay, state, *documents(sizes), chunk_len=FEW, impl=impl)
    return out, state.memory_BHKV

  yield Case("gated_linear", "chunks", run, (q, k, v, gates(sizes)[..., None]))
