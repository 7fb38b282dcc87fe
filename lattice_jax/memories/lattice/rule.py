"""Which online optimisation problem the memory solves, and one gradient step of it. Derivations: README.md here."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.config import OBJECTIVES, STATES
from lattice_jax.memories.lattice.sphere import unit


@dataclass(frozen=True)
class Rule:
  """What a token does to the slots.

  objective: the loss of which every token takes one gradient step.
  state: "retracted" renormalises every slot to length one; "accumulated" lets lengths grow, so slots turn less;
    "returning" renormalises too, after what was forgotten is filled up with the slots of the start.
  is_projected: False writes all of the incoming direction, not only what is orthogonal to the slot: no longer a
    gradient, for ablations.
  """

  objective: str = "decoding"
  state: str = "retracted"
  is_projected: bool = True

  def __post_init__(self):
    if self.objective not in OBJECTIVES:
      raise ValueError(f"objective={self.objective!r} of op 'lattice' is not one of {', '.join(OBJECTIVES)}.")
    if self.state not in STATES:
      raise ValueError(f"state={self.state!r} of op 'lattice' is not one of {', '.join(STATES)}.")


def inner_loss(objective: str, slot_MV: jax.Array, k_M: jax.Array, v_V: jax.Array) -> jax.Array:
  """The loss of one token, as a function of slots of any length; only their directions count."""
  unit_MV, _ = unit(slot_MV)
  if objective == "decoding":
    return 0.5 * ((v_V - k_M @ unit_MV) ** 2).sum()
  if objective == "encoding":
    return 0.5 * ((k_M - unit_MV @ v_V) ** 2).sum()
  return -(v_V @ (k_M @ unit_MV))


def incoming(objective: str, unit_MV: jax.Array, k_M: jax.Array, v_V: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The direction h that a token writes and the share c of it each slot is offered; leading axes are batched."""
  if objective == "decoding":
    return v_V - jnp.einsum("...M,...MV->...V", k_M, unit_MV, precision="highest"), k_M
  if objective == "encoding":
    return v_V, k_M - jnp.einsum("...MV,...V->...M", unit_MV, v_V, precision="highest")
  return v_V, k_M


def inner_gradient(rule: Rule, slot_MV: jax.Array, k_M: jax.Array, v_V: jax.Array) -> jax.Array:
  """∂ inner_loss / ∂ slot, −(c/‖s‖)·(h − ŝ (ŝ·h)) for every slot s; leading axes are batched."""
  unit_MV, length_M = unit(slot_MV)
  h_V, c_M = incoming(rule.objective, unit_MV, k_M, v_V)
  novel_MV = jnp.broadcast_to(h_V[..., None, :], unit_MV.shape)
  if rule.is_projected:
    novel_MV -= unit_MV * jnp.einsum("...MV,...V->...M", unit_MV, h_V, precision="highest")[..., None]
  return -(c_M / length_M)[..., None] * novel_MV
