"""TTT-Linear as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp

from lattice_jax.memories.cases import FEW, Case, Sizes, arrays, documents, gates, normal, unit
from lattice_jax.memories.ttt import op as ttt


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.width))
  (v,) = normal(sizes, 1, sizes.width)
  (weight,) = arrays(1, (sizes.heads, sizes.width, sizes.width))

  def run(inputs, impl):
    q, k, v, step, weight = inputs
    state = ttt.empty_state(1, sizes.heads, sizes.width)
    row = jnp.zeros((sizes.heads, sizes.width))
    learner = ttt.Learner(weight, row, row + 1, row, 1 / jnp.arange(1.0, FEW + 1))
    out, state = ttt.ttt(q, k, v, step / sizes.width, learner, state, *documents(sizes), impl=impl)
    return out, state.weight_BHKV

  yield Case("ttt", "dual", run, (q, k, v, gates(sizes), weight * sizes.width**-0.5))
