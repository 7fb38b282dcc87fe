"""The delta rule, with decays of heads and of channels, as `self_check` runs it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lattice_jax.memories.cases import FEW, Case, Sizes, arrays, documents, gates, normal, unit
from lattice_jax.memories.delta import op as delta


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.width))
  (v,) = normal(sizes, 1, sizes.width)

  def run(op: Callable[..., Any], inputs, impl):
    q, k, v, step, decay = inputs
    state = delta.empty_state(1, sizes.heads, sizes.width, sizes.width)
    out, state = op(q, k, v, step, decay, state, *documents(sizes), chunk_len=FEW, impl=impl)
    return out, state.memory_BHKV

  step = gates(sizes)
  yield Case("delta", "chunks", functools.partial(run, delta.delta), (q, k, v, step, step[..., None]))
  decay = jax.nn.sigmoid(arrays(8, k.shape)[0])
  yield Case("kimi_delta", "chunks", functools.partial(run, delta.kimi_delta), (q, k, v, step, decay))
