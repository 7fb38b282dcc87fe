"""Lattice: a fixed number of unit slots that learn online, each from what is orthogonal to it (arXiv 2504.05646)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.attention.keys import document_after, document_runs
from lattice_jax.ops.lattice.reference import lattice_reference
from lattice_jax.ops.lattice.rule import OBJECTIVES, STATES, Rule, incoming, inner_gradient, inner_loss
from lattice_jax.ops.lattice.scan import lattice_scan
from lattice_jax.ops.lattice.state import LatticeState, Slots, empty_state, select, unit
from lattice_jax.ops.lattice.tokens import Tokens, mask

__all__ = [
  "OBJECTIVES", "STATES", "LatticeState", "Rule", "Slots", "empty_state", "incoming", "inner_gradient", "inner_loss",
  "lattice",
]

# A gate of zero would leave a slot without a direction.
FORGET_FLOOR = 1e-2


def lattice(
  q: Float[Array, "B T H M"], k: Float[Array, "B T H M"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  forget: Float[Array, "B T H"] | None, start: Float[Array, "H M V"], state: LatticeState, ids: Int[Array, "B T"],
  valid: Bool[Array, "B T"], *, rule: Rule, impl: str = "auto",
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
    impl: "reference" is the definition, token by token.

  Returns:
    Output in the state's dtype and the next state.
  """
  dtype = state.slots.unit_BHMV.dtype
  run_BT = document_runs(ids, valid, state.document_B)
  is_start_BT = valid & (run_BT != jnp.pad(run_BT, ((0, 0), (1, 0)))[:, :-1])
  forget = jnp.ones(step.shape, dtype) if forget is None else jnp.maximum(forget, FORGET_FLOOR)
  tokens = mask(Tokens(q, k, v, step, forget), valid)
  start = _as_slots(start.astype(dtype), rule)
  # Only directions are remembered; the gradient through the form that runs may take the slots to be of length one.
  before = state.slots.replace(unit_BHMV=unit(state.slots.unit_BHMV)[0])
  chosen = choose_impl("lattice", impl, pallas_reason="there is no Pallas kernel for it yet")
  run = lattice_reference if chosen == "reference" else lattice_scan
  out_BTHV, after = run(rule, tokens, is_start_BT, start, before)
  after = select(valid.any(1), after, state.slots)
  return out_BTHV, LatticeState(after, document_after(ids, valid, state.document_B))


def _as_slots(start_HMV: jax.Array, rule: Rule) -> Slots:
  unit_HMV, _ = unit(start_HMV)
  return Slots(unit_HMV, jnp.ones_like(unit_HMV[..., 0]) if rule.state == "accumulated" else None)
