"""The GRU with diagonal recurrence as `self_check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

from lattice_jax.memories.cases import FEW, Case, Sizes, arrays, documents, normal
from lattice_jax.memories.gru import op
from lattice_jax.ops.parallel_recurrence import RecurrenceForm


def make_cases(sizes: Sizes) -> Iterator[Case]:
  weights = arrays(1, *[(sizes.heads, sizes.width)] * 3)

  def run(form, inputs, impl):
    *inputs, update, reset, candidate = inputs
    state = op.empty_state(1, sizes.heads, sizes.width)
    out, state = op.gru(
      *inputs, op.GRUWeights(update, reset, candidate), state, *documents(sizes),
      form=RecurrenceForm(form, chunk_len=FEW), impl=impl)
    return out, state.hidden_BHV

  inputs = (*normal(sizes, 3, sizes.width), *(weight / 2 for weight in weights))
  for form in ("scan", "newton"):
    yield Case("gru", form, lambda inputs, impl, form=form: run(form, inputs, impl), inputs)
