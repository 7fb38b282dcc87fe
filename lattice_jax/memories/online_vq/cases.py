"""Online vector-quantised attention as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

from lattice_jax.memories.cases import FEW, Case, Sizes, documents, normal, unit
from lattice_jax.memories.online_vq import op as online_vq


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.width))
  (v,) = normal(sizes, 1, sizes.width)

  def run(inputs, impl):
    q, k, v = inputs
    state = online_vq.empty_state(
      1, sizes.heads, sizes.slots, FEW, sizes.width, sizes.width, token_dtype=k.dtype)
    out, state = online_vq.online_vq(
      q, k, v, state, *documents(sizes), codes=sizes.slots, chunk_len=FEW, impl=impl)
    return out, state.value_BHMV

  yield Case("online_vq", "chunks", run, (q * sizes.width**0.5, k, v))
