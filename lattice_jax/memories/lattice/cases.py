"""Lattice in all its forms as `self_check` runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from lattice_jax.memories.cases import Case, Sizes, arrays, documents, gates, normal, unit
from lattice_jax.memories.lattice import op as lattice


def make_cases(sizes: Sizes) -> Iterator[Case]:
  q, k = (unit(x) for x in normal(sizes, 2, sizes.slots))
  v = unit(normal(sizes, 1, sizes.width)[0])
  (start,) = arrays(1, (sizes.heads, sizes.slots, sizes.width))

  def run(rule, form, ids, valid, inputs, impl):
    state = lattice.empty_state(1, sizes.heads, sizes.slots, sizes.width, rule=rule, form=form)
    q, k, v, step, start, *forget = inputs
    out, state = lattice.lattice(
      q, k, v, step, forget[0] if forget else None, start, state, ids, valid, rule=rule, form=form, impl=impl)
    return out, state.slots.unit_BHMV

  inputs = q, k, v, gates(sizes), start
  ids, valid = documents(sizes)
  for objective in lattice.OBJECTIVES:
    yield Case("lattice", f"scan, {objective}", functools.partial(
      run, lattice.Rule(objective), lattice.Form(), ids, valid), inputs)
  returning = functools.partial(run, lattice.Rule(state="returning"), lattice.Form(), ids, valid)
  yield Case("lattice", "scan, returning", returning, (*inputs, (1 + gates(sizes)) / 2))
  for name in lattice.FORMS[1:]:
    form = lattice.Form(name, chunk_len=8, rounds=8)
    yield Case("lattice", name, functools.partial(run, lattice.Rule(), form, ids, valid), inputs)
  yield Case(
    "lattice", "one token", functools.partial(run, lattice.Rule(), lattice.Form(), ids[:, :1], valid[:, :1]),
    (*(x[:, :1] for x in inputs[:4]), start))
