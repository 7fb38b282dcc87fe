"""One token: its step forward, and the adjoint of that step written out (README.md of this folder).

Products with a vector and not sums where there is a choice: XLA vectorises them on CPUs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.sphere import unit
from lattice_jax.memories.lattice.state import NORM_FLOOR, LatticeSlots
from lattice_jax.memories.lattice.tokens import Tokens


class Move(NamedTuple):
  """How a token moves the slots S, to (a S + b hᵀ + rest S₀) / length, S₀ being the start.

  along: S h. length: of what is divided, row by row. rest: of slots that return; None of others, whose it is 0.
  """

  h_BHV: jax.Array
  along_BHM: jax.Array
  a_BHM: jax.Array
  b_BHM: jax.Array
  length_BHM: jax.Array
  rest_BH1: jax.Array | None

  @property
  def keep_BHM(self) -> jax.Array:
    return self.a_BHM / self.length_BHM

  @property
  def write_BHM(self) -> jax.Array:
    return self.b_BHM / self.length_BHM


def move(rule: Rule, slots: LatticeSlots, token: Tokens, start: LatticeSlots) -> tuple[LatticeSlots, Move]:
  """The slots after one token, which lacks the axis T, and how it moved them."""
  h_BHV = token.v_BTHV
  if rule.objective == "decoding":
    h_BHV = h_BHV - sum_slots(token.k_BTHM, slots.unit_BHMV)
  along_BHM = project(slots.unit_BHMV, h_BHV)
  a_BHM, b_BHM = gates(rule, *_gate_inputs(slots, token, along_BHM))
  raw_BHMV, rest_BH1 = a_BHM[..., None] * slots.unit_BHMV + outer(b_BHM, h_BHV), None
  if rule.state == "returning":
    rest_BH1 = 1 - token.forget_BTH[..., None]
    raw_BHMV += rest_BH1[..., None] * start.unit_BHMV
  unit_BHMV, length_BHM = unit(raw_BHMV)
  norm_BHM = None
  if slots.norm_BHM is not None:
    norm_BHM = jnp.maximum(token.forget_BTH[..., None] * slots.norm_BHM * length_BHM, NORM_FLOOR)
  return LatticeSlots(unit_BHMV, norm_BHM), Move(h_BHV, along_BHM, a_BHM, b_BHM, length_BHM, rest_BH1)


def read(slots: LatticeSlots, token: Tokens) -> jax.Array:
  """The token's output."""
  return sum_slots(token.q_BTHM, slots.unit_BHMV)


def read_adjoint(before: LatticeSlots, moved: Move, start: LatticeSlots, d_out_BHV: jax.Array) -> jax.Array:
  """Cotangent of the query, from that of the output q·S' with S' = keep S + write hᵀ + rest S₀ / length."""
  h_d_out_BH = jnp.einsum("BHV,BHV->BH", moved.h_BHV, d_out_BHV, precision="highest")
  d_q_BHM = moved.keep_BHM * project(before.unit_BHMV, d_out_BHV) + moved.write_BHM * h_d_out_BH[..., None]
  if moved.rest_BH1 is not None:
    d_q_BHM += moved.rest_BH1 / moved.length_BHM * project(_of_rows(start, before), d_out_BHV)
  return d_q_BHM


def returning_adjoint(
  rule: Rule, before: LatticeSlots, token: Tokens, moved: Move, start: LatticeSlots, d_after: LatticeSlots,
  d_out_BHV: jax.Array,
) -> tuple[LatticeSlots, Tokens, LatticeSlots]:
  """As `move_adjoint` of slots that return, and the cotangent of their start, which lacks the axis B."""
  S_BHMV, start_BHMV, h_BHV = before.unit_BHMV, _of_rows(start, before), moved.h_BHV
  X_BHMV = d_after.unit_BHMV + outer(token.q_BTHM, d_out_BHV)
  raw_BHMV = moved.a_BHM[..., None] * S_BHMV + outer(moved.b_BHM, h_BHV) + moved.rest_BH1[..., None] * start_BHMV
  after_BHMV, ones_BHV = raw_BHMV / moved.length_BHM[..., None], jnp.ones_like(h_BHV)
  radial_BHM = project(after_BHMV * X_BHMV, ones_BHV)
  d_raw_BHMV = (X_BHMV - radial_BHM[..., None] * after_BHMV) / moved.length_BHM[..., None]

  pull_gates = jax.vjp(functools.partial(gates, rule), *_gate_inputs(before, token, moved.along_BHM))[1]
  d_k_BHM, d_step_BH1, d_forget_BH1, d_along_BHM, _ = pull_gates(
    (project(d_raw_BHMV * S_BHMV, ones_BHV), project(d_raw_BHMV, h_BHV)))
  d_forget_BH1 -= project(d_raw_BHMV * start_BHMV, ones_BHV).sum(-1, keepdims=True)
  d_h_BHV = sum_slots(moved.b_BHM, d_raw_BHMV) + sum_slots(d_along_BHM, S_BHMV)
  d_S_BHMV = moved.a_BHM[..., None] * d_raw_BHMV + outer(d_along_BHM, h_BHV)
  d_S_BHMV, d_k_BHM = _through_h(rule, before, token, d_h_BHV, d_S_BHMV, d_k_BHM)
  d_token = Tokens(None, d_k_BHM, d_h_BHV, d_step_BH1[..., 0], d_forget_BH1[..., 0])
  d_start = LatticeSlots((moved.rest_BH1[..., None] * d_raw_BHMV).sum(0), None)
  return LatticeSlots(d_S_BHMV, None), d_token, d_start


def move_adjoint(
  rule: Rule, before: LatticeSlots, token: Tokens, moved: Move, d_after: LatticeSlots, d_out_BHV: jax.Array
) -> tuple[LatticeSlots, Tokens]:
  """Cotangents of the slots before a token and of the token, from those of the slots after it and of its output.

  That of the query is None here: `read_adjoint` makes it, for many tokens at a time.
  """
  S_BHMV, norm_BHM, forget_BH1 = before.unit_BHMV, before.norm_BHM, token.forget_BTH[..., None]
  h_BHV, along_BHM, length_BHM = moved.h_BHV, moved.along_BHM, moved.length_BHM
  keep_BHM, write_BHM = moved.keep_BHM, moved.write_BHM
  X_BHMV = d_after.unit_BHMV + outer(token.q_BTHM, d_out_BHV)
  X_S_BHM, X_h_BHM = project(S_BHMV * X_BHMV, jnp.ones_like(h_BHV)), project(X_BHMV, h_BHV)

  # The length of a S + b hᵀ takes from X what lies along S', and gives what the next norm asks for.
  radial_BHM = keep_BHM * X_S_BHM + write_BHM * X_h_BHM
  if norm_BHM is not None:
    d_next_BHM = jnp.where(forget_BH1 * norm_BHM * length_BHM > NORM_FLOOR, d_after.norm_BHM, 0)
    radial_BHM -= length_BHM * d_next_BHM * forget_BH1 * norm_BHM
  energy_BH1 = (h_BHV * h_BHV).sum(-1, keepdims=True)
  d_a_BHM = (X_S_BHM - radial_BHM * (keep_BHM + write_BHM * along_BHM)) / length_BHM
  d_b_BHM = (X_h_BHM - radial_BHM * (keep_BHM * along_BHM + write_BHM * energy_BH1)) / length_BHM
  pull_gates = jax.vjp(functools.partial(gates, rule), *_gate_inputs(before, token, along_BHM))[1]
  d_k_BHM, d_step_BH1, d_forget_BH1, d_along_BHM, d_norm_BHM = pull_gates((d_a_BHM, d_b_BHM))
  if norm_BHM is not None:
    d_norm_BHM += d_next_BHM * forget_BH1 * length_BHM
    d_forget_BH1 += (d_next_BHM * norm_BHM * length_BHM).sum(-1, keepdims=True)

  # along = S h,  h = v − k·S
  d_h_BHV = sum_slots(write_BHM, X_BHMV) + sum_slots(d_along_BHM - write_BHM * radial_BHM * keep_BHM, S_BHMV)
  d_h_BHV -= (write_BHM**2 * radial_BHM).sum(-1, keepdims=True) * h_BHV
  d_S_BHMV = keep_BHM[..., None] * X_BHMV - (keep_BHM**2 * radial_BHM)[..., None] * S_BHMV
  d_S_BHMV += outer(d_along_BHM - keep_BHM * radial_BHM * write_BHM, h_BHV)
  d_S_BHMV, d_k_BHM = _through_h(rule, before, token, d_h_BHV, d_S_BHMV, d_k_BHM)
  d_token = Tokens(None, d_k_BHM, d_h_BHV, d_step_BH1[..., 0], d_forget_BH1[..., 0])
  return LatticeSlots(d_S_BHMV, d_norm_BHM), d_token


def _through_h(rule, before, token, d_h_BHV, d_S_BHMV, d_k_BHM) -> tuple[jax.Array, jax.Array]:
  """Adds to the cotangents of slots and key what reaches them through h = v − k·S."""
  if rule.objective != "decoding":
    return d_S_BHMV, d_k_BHM
  return d_S_BHMV - outer(token.k_BTHM, d_h_BHV), d_k_BHM - project(before.unit_BHMV, d_h_BHV)


def _of_rows(start: LatticeSlots, slots: LatticeSlots) -> jax.Array:
  """The start of every row."""
  return jnp.broadcast_to(start.unit_BHMV, slots.unit_BHMV.shape)


def sum_slots(weight_BHM: jax.Array, S_BHMV: jax.Array) -> jax.Array:
  """Σ over slots of weight·slot."""
  return jnp.einsum("BHM,BHMV->BHV", weight_BHM, S_BHMV, precision="highest")


def project(S_BHMV: jax.Array, h_BHV: jax.Array) -> jax.Array:
  """The inner product of every slot with h."""
  return jnp.einsum("BHMV,BHV->BHM", S_BHMV, h_BHV, precision="highest")


def outer(weight_BHM: jax.Array, h_BHV: jax.Array) -> jax.Array:
  """weight·h for every slot."""
  return weight_BHM[..., None] * h_BHV[..., None, :]


def _gate_inputs(slots, token, along_BHM):
  return token.k_BTHM, token.step_BTH[..., None], token.forget_BTH[..., None], along_BHM, slots.norm_BHM
