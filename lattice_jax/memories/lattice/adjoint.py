"""The adjoint of a token's step, written out (README.md of this folder): what needs the slots' cotangent, and the rest.

The first part runs token by token from the last to the first, the second for a chunk of tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.state import NORM_FLOOR, LatticeSlots
from lattice_jax.memories.lattice.step import Move, gate_inputs, of_rows, outer, project, sum_slots
from lattice_jax.memories.lattice.tokens import Tokens


class Along(NamedTuple):
  """Inner products with the slots after a token, S', row by row; and with the start's, of slots that return, or None.

  before: S'·S. h: S'·h. start: S'·S₀. energy: ‖h‖².
  """

  before_BHM: jax.Array
  h_BHM: jax.Array
  start_BHM: jax.Array | None
  energy_BH1: jax.Array


class Pull(NamedTuple):
  """Cotangents of what a token's step is made of. next: of the norm after it, None where there is none.

  h: of the direction. a, b, rest: of the gates and of the start's share; the last is None where it is no part.
  """

  h_BHV: jax.Array
  a_BHM: jax.Array
  b_BHM: jax.Array
  rest_BHM: jax.Array | None
  next_BHM: jax.Array | None


def lengths_along(before: LatticeSlots, moved: Move, start: LatticeSlots) -> Along:
  """What the adjoint needs of a token's slots and direction alone. S has rows of length one."""
  energy_BH1 = (moved.found.h_BHV * moved.found.h_BHV).sum(-1, keepdims=True)
  before_BHM = moved.keep_BHM + moved.write_BHM * moved.found.along_BHM
  h_BHM = moved.keep_BHM * moved.found.along_BHM + moved.write_BHM * energy_BH1
  if moved.rest_BH1 is None:
    return Along(before_BHM, h_BHM, None, energy_BH1)
  start_before_BHM = project(of_rows(start, before) * before.unit_BHMV, jnp.ones_like(moved.found.h_BHV))
  start_h_BHM = project(of_rows(start, before), moved.found.h_BHV)
  return Along(
    before_BHM + moved.back_BHM * start_before_BHM, h_BHM + moved.back_BHM * start_h_BHM,
    moved.keep_BHM * start_before_BHM + moved.write_BHM * start_h_BHM + moved.back_BHM, energy_BH1)


def pull_back(
  rule: Rule, before: LatticeSlots, token: Tokens, moved: Move, along: Along, start: LatticeSlots, X_BHMV: jax.Array,
  d_norm_BHM: jax.Array | None,
) -> tuple[LatticeSlots, Pull, jax.Array | None]:
  """Cotangents of the slots before a token, of its step's parts, and of the start as a part of it, by rows, or None.

  X: that of the slots after the token, what its output asks for included. d_norm: that of their norms, or None.
  """
  S_BHMV, start_BHMV, (h_BHV, _, length_BHM) = before.unit_BHMV, of_rows(start, before), moved.found
  keep_BHM, write_BHM, back_BHM, ones_BHV = moved.keep_BHM, moved.write_BHM, moved.back_BHM, jnp.ones_like(h_BHV)
  X_S_BHM, X_h_BHM = project(S_BHMV * X_BHMV, ones_BHV), project(X_BHMV, h_BHV)

  # The length of what is divided takes from X what lies along S', and gives what the next norm asks for.
  radial_BHM, d_next_BHM, d_rest_BHM = keep_BHM * X_S_BHM + write_BHM * X_h_BHM, None, None
  if back_BHM is not None:
    X_start_BHM = project(start_BHMV * X_BHMV, ones_BHV)
    radial_BHM += back_BHM * X_start_BHM
    d_rest_BHM = (X_start_BHM - radial_BHM * along.start_BHM) / length_BHM
  if before.norm_BHM is not None:
    next_BHM = token.forget_BTH[..., None] * before.norm_BHM
    d_next_BHM = jnp.where(next_BHM * length_BHM > NORM_FLOOR, d_norm_BHM, 0)
    radial_BHM -= length_BHM * d_next_BHM * next_BHM
  d_a_BHM = (X_S_BHM - radial_BHM * along.before_BHM) / length_BHM
  d_b_BHM = (X_h_BHM - radial_BHM * along.h_BHM) / length_BHM
  k_BHM, step_BH1, forget_BH1, along_BHM, norm_BHM = gate_inputs(before, token, moved.found.along_BHM)
  pull_gates = jax.vjp(
    lambda along, norm: gates(rule, k_BHM, step_BH1, forget_BH1, along, norm), along_BHM, norm_BHM)[1]
  d_along_BHM, d_norm_BHM = pull_gates((d_a_BHM, d_b_BHM))
  if norm_BHM is not None:
    d_norm_BHM += d_next_BHM * forget_BH1 * length_BHM

  # along = S h,  h = v − k·S
  d_h_BHV = sum_slots(write_BHM, X_BHMV) + sum_slots(d_along_BHM - write_BHM * radial_BHM * keep_BHM, S_BHMV)
  d_h_BHV -= (write_BHM**2 * radial_BHM).sum(-1, keepdims=True) * h_BHV
  d_S_BHMV = keep_BHM[..., None] * X_BHMV - (keep_BHM**2 * radial_BHM)[..., None] * S_BHMV
  d_S_BHMV += outer(d_along_BHM - keep_BHM * radial_BHM * write_BHM, h_BHV)
  d_start_BHMV = None
  if back_BHM is not None:
    d_h_BHV -= sum_slots(write_BHM * radial_BHM * back_BHM, start_BHMV)
    d_S_BHMV -= (keep_BHM * radial_BHM * back_BHM)[..., None] * start_BHMV
    after_BHMV = keep_BHM[..., None] * S_BHMV + outer(write_BHM, h_BHV) + back_BHM[..., None] * start_BHMV
    d_start_BHMV = back_BHM[..., None] * (X_BHMV - radial_BHM[..., None] * after_BHMV)
  if rule.objective == "decoding":
    d_S_BHMV -= outer(k_BHM, d_h_BHV)
  return LatticeSlots(d_S_BHMV, d_norm_BHM), Pull(d_h_BHV, d_a_BHM, d_b_BHM, d_rest_BHM, d_next_BHM), d_start_BHMV


def pull_token(
  rule: Rule, before: LatticeSlots, token: Tokens, moved: Move, pull: Pull, start: LatticeSlots, d_out_BHV: jax.Array
) -> Tokens:
  """Cotangents of a token, from those of its step's parts and of its output."""
  along_BHM, norm_BHM = moved.found.along_BHM, before.norm_BHM
  k_BHM, step_BH1, forget_BH1, *_ = gate_inputs(before, token, along_BHM)
  pull_gates = jax.vjp(lambda *inputs: gates(rule, *inputs, along_BHM, norm_BHM), k_BHM, step_BH1, forget_BH1)[1]
  d_k_BHM, d_step_BH1, d_forget_BH1 = pull_gates((pull.a_BHM, pull.b_BHM))
  if pull.rest_BHM is not None:
    d_forget_BH1 -= pull.rest_BHM.sum(-1, keepdims=True)
  if norm_BHM is not None:
    d_forget_BH1 += (pull.next_BHM * norm_BHM * moved.found.length_BHM).sum(-1, keepdims=True)
  if rule.objective == "decoding":
    d_k_BHM -= project(before.unit_BHMV, pull.h_BHV)
  d_q_BHM = _pull_query(before, moved, start, d_out_BHV)
  return Tokens(d_q_BHM, d_k_BHM, pull.h_BHV, d_step_BH1[..., 0], d_forget_BH1[..., 0])


def _pull_query(before: LatticeSlots, moved: Move, start: LatticeSlots, d_out_BHV: jax.Array) -> jax.Array:
  h_d_out_BH1 = (moved.found.h_BHV * d_out_BHV).sum(-1, keepdims=True)
  d_q_BHM = moved.keep_BHM * project(before.unit_BHMV, d_out_BHV) + moved.write_BHM * h_d_out_BH1
  if moved.rest_BH1 is not None:
    d_q_BHM += moved.back_BHM * project(of_rows(start, before), d_out_BHV)
  return d_q_BHM
