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


class Found(NamedTuple):
  """What a token finds in the slots S: its direction h, along = S h, and the length of what they become, row by row."""

  h_BHV: jax.Array
  along_BHM: jax.Array
  length_BHM: jax.Array


class Move(NamedTuple):
  """How a token moves the slots S, to S' = (a S + b hᵀ + rest S₀) / length, S₀ being the start.

  rest: of slots that return; None of others, whose it is 0.
  """

  found: Found
  a_BHM: jax.Array
  b_BHM: jax.Array
  rest_BH1: jax.Array | None

  @property
  def keep_BHM(self) -> jax.Array:
    return self.a_BHM / self.found.length_BHM

  @property
  def write_BHM(self) -> jax.Array:
    return self.b_BHM / self.found.length_BHM

  @property
  def back_BHM(self) -> jax.Array | None:
    return None if self.rest_BH1 is None else self.rest_BH1 / self.found.length_BHM


def find(rule: Rule, slots: LatticeSlots, token: Tokens, start: LatticeSlots) -> Found:
  """What one token, which lacks the axis T, finds in the slots."""
  h_BHV = token.v_BTHV
  if rule.objective == "decoding":
    h_BHV = h_BHV - sum_slots(token.k_BTHM, slots.unit_BHMV)
  found = Found(h_BHV, project(slots.unit_BHMV, h_BHV), None)
  sum_BHMV = _unscaled(slots, _parts(rule, slots, token, found), start)
  squared_BHM = project(sum_BHMV * sum_BHMV, jnp.ones_like(h_BHV))
  return found._replace(length_BHM=jnp.sqrt(jnp.maximum(squared_BHM, TINY**2)))


def move(
  rule: Rule, slots: LatticeSlots, token: Tokens, start: LatticeSlots, found: Found
) -> tuple[LatticeSlots, Move]:
  """The slots after one token, and how it moved them."""
  moved = _parts(rule, slots, token, found)
  norm_BHM = None
  if slots.norm_BHM is not None:
    norm_BHM = jnp.maximum(token.forget_BTH[..., None] * slots.norm_BHM * found.length_BHM, NORM_FLOOR)
  return LatticeSlots(_unscaled(slots, moved, start) / found.length_BHM[..., None], norm_BHM), moved


def _parts(rule: Rule, slots: LatticeSlots, token: Tokens, found: Found) -> Move:
  a_BHM, b_BHM = gates(rule, *gate_inputs(slots, token, found.along_BHM))
  return Move(found, a_BHM, b_BHM, 1 - token.forget_BTH[..., None] if rule.state == "returning" else None)


def _unscaled(slots: LatticeSlots, moved: Move, start: LatticeSlots) -> jax.Array:
  sum_BHMV = moved.a_BHM[..., None] * slots.unit_BHMV + outer(moved.b_BHM, moved.found.h_BHV)
  return sum_BHMV if moved.rest_BH1 is None else sum_BHMV + moved.rest_BH1[..., None] * start.unit_BHMV


def read(rule: Rule, before: LatticeSlots, token: Tokens, start: LatticeSlots, found: Found) -> jax.Array:
  """The token's output q·S', from the slots before it: so those after it are needed in their next token alone."""
  q_BHM, moved = token.q_BTHM, _parts(rule, before, token, found)
  out_BHV = sum_slots(q_BHM * moved.keep_BHM, before.unit_BHMV)
  out_BHV += (q_BHM * moved.write_BHM).sum(-1, keepdims=True) * moved.found.h_BHV
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
