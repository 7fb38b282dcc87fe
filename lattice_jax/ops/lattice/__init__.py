"""Lattice: a fixed number of unit slots that learn online, each from what is orthogonal to it (arXiv 2504.05646)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.attention.keys import document_after, document_runs
from lattice_jax.ops.lattice.form import FORMS, Form
from lattice_jax.ops.lattice.parallel import changes_by_round, lattice_parallel
from lattice_jax.ops.lattice.reference import lattice_reference
from lattice_jax.ops.lattice.rule import OBJECTIVES, STATES, Rule, incoming, inner_gradient, inner_loss
from lattice_jax.ops.lattice.scan import lattice_scan
from lattice_jax.ops.lattice.state import LatticeState, Slots, empty_state, select, unit
from lattice_jax.ops.lattice.tokens import Tokens, mask

__all__ = [
  "FORMS", "OBJECTIVES", "STATES", "Form", "LatticeState", "Rule", "Slots", "convergence", "empty_state", "incoming",
  "inner_gradient", "inner_loss", "lattice",
]

# A gate of zero would leave a slot without a direction.
FORGET_FLOOR = 1e-2


def lattice(
  q: Float[Array, "B T H M"], k: Float[Array, "B T H M"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  forget: Float[Array, "B T H"] | None, start: Float[Array, "H M V"], state: LatticeState, ids: Int[Array, "B T"],
  valid: Bool[Array, "B T"], *, rule: Rule, form: Form | None = None,
  impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], LatticeState]:
  """Writes every token into the slots of its document by one step on `rule.objective`, then reads them with q.

  Args:
    q, k: queries and codes over the slots; k of length at most one keeps steps below 2 stable.
    v: values.
    step: size η ≥ 0 of the step of each token.
    forget: factor α in (0, 1] on the slots before the step, at least 0.01; None is one. Where the state is retracted,
      it has the effect of a step of η/α.
    start: slots of a document before its first token; their directions, that is.
    state: what came before.
    ids, valid: document of each token; invalid tokens (a suffix) leave the state alone.
    form: how "xla" computes it; `Form()` by default.
    impl: "reference" is the definition, token by token.

  Returns:
    Output in the state's dtype and the next state.
  """
  chosen = choose_impl("lattice", impl, pallas_reason="there is no Pallas kernel for it yet")
  run = _choose(rule, form or Form(), chosen)
  out_BTHV, after = run(*_enter(q, k, v, step, forget, start, state, ids, valid))
  after = select(valid.any(1), after, state.slots)
  return out_BTHV, LatticeState(after, document_after(ids, valid, state.document_B))


def convergence(
  q: Float[Array, "B T H M"], k: Float[Array, "B T H M"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  forget: Float[Array, "B T H"] | None, start: Float[Array, "H M V"], state: LatticeState, ids: Int[Array, "B T"],
  valid: Bool[Array, "B T"], *, rule: Rule, chunk_len: int,
) -> Float[Array, "N C"]:
  """How much each of C rounds of form "parallel" changes in each of N chunks of C tokens; arguments as of `lattice`.

  The largest change of an inner product of slot and direction over the longest direction, which is what
  `Form.tolerance` is compared with.
  """
  tokens, is_start_BT, start, slots = _enter(q, k, v, step, forget, start, state, ids, valid)
  return changes_by_round(rule, chunk_len, tokens, is_start_BT, start, slots)


def _enter(q, k, v, step, forget, start, state, ids, valid) -> tuple[Tokens, jax.Array, Slots, Slots]:
  """Tokens with the invalid ones made harmless, where documents begin, the slots they begin with, and those at hand."""
  unit_BHMV, norm_BHM = state.slots.unit_BHMV, state.slots.norm_BHM
  run_BT = document_runs(ids, valid, state.document_B)
  is_start_BT = valid & (run_BT != jnp.pad(run_BT, ((0, 0), (1, 0)))[:, :-1])
  forget = jnp.ones(step.shape, unit_BHMV.dtype) if forget is None else jnp.maximum(forget, FORGET_FLOOR)
  start_HMV, _ = unit(start.astype(unit_BHMV.dtype))
  start_norm_HM = None if norm_BHM is None else jnp.ones_like(start_HMV[..., 0])
  # Only directions are remembered; the gradient through the form that runs may take the slots to be of length one.
  before = Slots(unit(unit_BHMV)[0], norm_BHM)
  return mask(Tokens(q, k, v, step, forget), valid), is_start_BT, Slots(start_HMV, start_norm_HM), before


def _choose(rule: Rule, form: Form, chosen: str) -> Callable[..., tuple[jax.Array, Slots]]:
  if chosen == "reference":
    return functools.partial(lattice_reference, rule)
  if form.name == "scan":
    return functools.partial(lattice_scan, rule)
  if rule.state == "accumulated":
    raise ValueError(
      f"form={form.name!r} of op 'lattice' needs slots of length one; use state='retracted', or form='scan'.")
  return functools.partial(lattice_parallel, rule, form)
