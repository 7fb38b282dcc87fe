"""Lattice: a fixed number of unit slots that learn online, each from what is orthogonal to it (arXiv 2504.05646)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.memories.lattice.approximate import lattice_chunked
from lattice_jax.memories.lattice.form import APPROXIMATE_FORMS, EXACT_FORMS, FORMS, Form
from lattice_jax.memories.lattice.kernel import choose_lattice_impl, lattice_kernel
from lattice_jax.memories.lattice.parallel import Rounds, changes_by_round, lattice_parallel
from lattice_jax.memories.lattice.reference import lattice_loop, lattice_reference
from lattice_jax.memories.lattice.rule import OBJECTIVES, STATES, Rule, incoming, inner_gradient, inner_loss
from lattice_jax.memories.lattice.scan import lattice_scan
from lattice_jax.memories.lattice.sphere import unit
from lattice_jax.memories.lattice.state import LatticeSlots, LatticeState, OpenChunk, empty_state
from lattice_jax.memories.lattice.tokens import Tokens, mask
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.chunk_grid import make_chunk_grid
from lattice_jax.ops.documents import document_after, document_starts, select

__all__ = [
  "APPROXIMATE_FORMS", "EXACT_FORMS", "FORMS", "OBJECTIVES", "STATES", "Form", "LatticeSlots", "LatticeState",
  "OpenChunk", "Rounds", "Rule", "convergence", "empty_state", "incoming", "inner_gradient", "inner_loss", "lattice",
  "lattice_with_rounds",
]

# A gate of zero would leave a slot without a direction; below a half, the start could cancel what is left of one.
FORGET_FLOOR = {"retracted": 1e-2, "accumulated": 1e-2, "returning": 0.5}


def lattice(
  q: Float[Array, "B T H M"], k: Float[Array, "B T H M"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  forget: Float[Array, "B T H"] | None, start: Float[Array, "H M V"], state: LatticeState | None = None,
  ids: Int[Array, "B T"] | None = None, valid: Bool[Array, "B T"] | None = None, *, rule: Rule | None = None,
  form: Form | None = None, impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], LatticeState]:
  """Writes every token into the slots of its document by one step on `rule.objective`, then reads them with q.

  Args:
    q, k: queries and codes over the slots; k of length at most one keeps steps below 2 stable.
    v: values.
    step: size η ≥ 0 of the step of each token.
    forget: factor α in (0, 1] on the slots before the step, at least 0.01; None is one. Where the state is retracted,
      it has the effect of a step of η/α. Where it is returning, it is at least 0.5, and slots also get (1 − α) of
      those of the start.
    start: slots of a document before its first token; their directions, that is.
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `tokens.mask` makes invalid tokens (a suffix) leave the state alone.
      None: one document, all valid.
    rule: `Rule()` by default, one step on the decoding objective, after which slots have length one again.
    form: how it is computed; approximate forms define what is computed, and `state` must be made for the same form.
      `Form()` by default, the exact scan.
    impl: "reference" is the definition, token by token; "pallas" has kernels for form "scan" of slots that are
      not accumulated.

  Returns:
    Output in the state's dtype and the next state.
  """
  return lattice_with_rounds(q, k, v, step, forget, start, state, ids, valid, rule=rule, form=form, impl=impl)[:2]


def lattice_with_rounds(
  q: Float[Array, "B T H M"], k: Float[Array, "B T H M"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  forget: Float[Array, "B T H"] | None, start: Float[Array, "H M V"], state: LatticeState | None = None,
  ids: Int[Array, "B T"] | None = None, valid: Bool[Array, "B T"] | None = None, *, rule: Rule | None = None,
  form: Form | None = None, impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], LatticeState, Rounds | None]:
  """As `lattice`, and how the rounds of form "parallel" went; None where there are none."""
  rule, form, rounds = rule or Rule(), form or Form(), None
  state, ids, valid = complete_call("lattice", state, ids, valid, like=q, empty=lambda: empty_state(
    len(q), *q.shape[2:], v.shape[-1], rule=rule, form=form))
  unit_BHMV = state.slots.unit_BHMV
  impl = choose_lattice_impl(
    impl, rule, form, slots=unit_BHMV.shape[2], value_dim=unit_BHMV.shape[3], dtype=unit_BHMV.dtype)
  tokens, is_start_BT, start = _prepare(rule, q, k, v, step, forget, start, state, ids, valid)
  if form.is_approximate:
    out_BTHV, after = _run_approximate(rule, form, impl == "reference", tokens, is_start_BT, valid, start, state)
  else:
    # Only directions are remembered; the gradient through the form that runs may take the slots to be of length one.
    slots = state.slots.replace(unit_BHMV=unit(state.slots.unit_BHMV)[0])
    out_BTHV, slots, rounds = _run_exact(rule, form, impl, tokens, is_start_BT, start, slots)
    after = state.replace(slots=slots)
  after = select(valid.any(1), after, state)
  return out_BTHV, after.replace(document_B=document_after(ids, valid, state.document_B)), rounds


def convergence(
  q: Float[Array, "B T H M"], k: Float[Array, "B T H M"], v: Float[Array, "B T H V"], step: Float[Array, "B T H"],
  forget: Float[Array, "B T H"] | None, start: Float[Array, "H M V"], state: LatticeState, ids: Int[Array, "B T"],
  valid: Bool[Array, "B T"], *, rule: Rule, chunk_len: int,
) -> Float[Array, "N C"]:
  """How much each of C rounds of form "parallel" changes in each of N chunks of C tokens; arguments as of `lattice`.

  The largest change of an inner product of slot and direction over the longest direction, which is what
  `Form.tolerance` is compared with.
  """
  tokens, is_start_BT, start = _prepare(rule, q, k, v, step, forget, start, state, ids, valid)
  return changes_by_round(rule, chunk_len, tokens, is_start_BT, start, state.slots)


def _prepare(rule, q, k, v, step, forget, start, state, ids, valid) -> tuple[Tokens, jax.Array, LatticeSlots]:
  """Tokens with the invalid ones made harmless, where documents begin, and the slots they begin with."""
  dtype, norm_BHM = state.slots.unit_BHMV.dtype, state.slots.norm_BHM
  is_start_BT = document_starts(ids, valid, state.document_B)
  forget = jnp.ones(step.shape, dtype) if forget is None else jnp.maximum(forget, FORGET_FLOOR[rule.state])
  start_HMV, _ = unit(start.astype(dtype))
  start_norm_HM = None if norm_BHM is None else jnp.ones_like(start_HMV[..., 0])
  return mask(Tokens(q, k, v, step, forget), valid), is_start_BT, LatticeSlots(start_HMV, start_norm_HM)


def _run_exact(
  rule: Rule, form: Form, impl: str, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> tuple[jax.Array, LatticeSlots, Rounds | None]:
  if form.name == "parallel" and impl != "reference":
    _check_retracted(rule, form)
    return lattice_parallel(rule, form, tokens, is_start_BT, start, slots)
  run = lattice_reference if impl == "reference" else lattice_scan
  if impl in ("pallas", "interpret"):
    run = functools.partial(lattice_kernel, interpret=impl == "interpret")
  return *run(rule, tokens, is_start_BT, start, slots), None


def _run_approximate(rule, form, is_reference, tokens, is_start_BT, valid, start, state):
  _check_retracted(rule, form)
  run = lattice_loop if is_reference else lattice_chunked
  grid, fill_B = make_chunk_grid(is_start_BT, valid, state.open.fill_B, form.chunk_len)
  # As with exact forms: the slots at a chunk's start are directions, and forms may take their length to be one.
  slots = unit(state.open.anchor_BHMV)[0], state.slots.unit_BHMV
  out_BTHV, (anchor_BHMV, now_BHMV) = run(rule, form, tokens, grid, start, slots)
  return out_BTHV, state.replace(slots=LatticeSlots(now_BHMV, None), open=OpenChunk(anchor_BHMV, fill_B))


def _check_retracted(rule: Rule, form: Form) -> None:
  if rule.state != "retracted":
    raise ValueError(
      f"form={form.name!r} of op 'lattice' is one of state='retracted', not of {rule.state!r}; use that state, or "
      "form='scan'.")
