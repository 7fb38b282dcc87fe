"""One token: how it moves the slots, and what it reads (README.md of this folder).

Products with a vector and not sums where there is a choice: XLA vectorises them on CPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.sphere import TINY
from lattice_jax.memories.lattice.state import NORM_FLOOR, LatticeSlots
from lattice_jax.memories.lattice.tokens import Tokens


class Move(NamedTuple):
  """How a token moves the slots S, to S' = (a S + b hᵀ + rest S₀) / length, S₀ being the start.

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

  @property
  def back_BHM(self) -> jax.Array | None:
    return None if self.rest_BH1 is None else self.rest_BH1 / self.length_BHM


def move(rule: Rule, slots: LatticeSlots, token: Tokens, start: LatticeSlots) -> tuple[LatticeSlots, Move]:
  """The slots after one token, which lacks the axis T, and how it moved them."""
  h_BHV = token.v_BTHV
  if rule.objective == "decoding":
    h_BHV = h_BHV - sum_slots(token.k_BTHM, slots.unit_BHMV)
  along_BHM = project(slots.unit_BHMV, h_BHV)
  a_BHM, b_BHM = gates(rule, *gate_inputs(slots, token, along_BHM))
  raw_BHMV, rest_BH1 = a_BHM[..., None] * slots.unit_BHMV + outer(b_BHM, h_BHV), None
  if rule.state == "returning":
    rest_BH1 = 1 - token.forget_BTH[..., None]
    raw_BHMV += rest_BH1[..., None] * start.unit_BHMV
  squared_BHM = project(raw_BHMV * raw_BHMV, jnp.ones_like(h_BHV))
  length_BHM, norm_BHM = jnp.sqrt(jnp.maximum(squared_BHM, TINY**2)), None
  if slots.norm_BHM is not None:
    norm_BHM = jnp.maximum(token.forget_BTH[..., None] * slots.norm_BHM * length_BHM, NORM_FLOOR)
  unit_BHMV = raw_BHMV / length_BHM[..., None]
  return LatticeSlots(unit_BHMV, norm_BHM), Move(h_BHV, along_BHM, a_BHM, b_BHM, length_BHM, rest_BH1)


def read(before: LatticeSlots, token: Tokens, moved: Move, start: LatticeSlots) -> jax.Array:
  """The token's output q·S', from the slots before it: so those after it are needed in their next token alone."""
  q_BHM = token.q_BTHM
  out_BHV = sum_slots(q_BHM * moved.keep_BHM, before.unit_BHMV)
  out_BHV += (q_BHM * moved.write_BHM).sum(-1, keepdims=True) * moved.h_BHV
  if moved.rest_BH1 is not None:
    out_BHV += sum_slots(q_BHM * moved.back_BHM, of_rows(start, before))
  return out_BHV


def of_rows(start: LatticeSlots, slots: LatticeSlots) -> jax.Array:
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


def gate_inputs(slots: LatticeSlots, token: Tokens, along_BHM: jax.Array) -> tuple[jax.Array | None, ...]:
  """What `gates` takes, of one token."""
  return token.k_BTHM, token.step_BTH[..., None], token.forget_BTH[..., None], along_BHM, slots.norm_BHM
