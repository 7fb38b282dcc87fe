"""Lattice by its definition: one gradient step a token, with the actual lengths of the slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.ops.lattice.rule import Rule, inner_gradient
from lattice_jax.ops.lattice.state import NORM_FLOOR, Slots, select, unit
from lattice_jax.ops.lattice.tokens import Tokens


def lattice_reference(
  rule: Rule, tokens: Tokens, is_start_BT: jax.Array, start: Slots, slots: Slots
) -> tuple[jax.Array, Slots]:
  """Output [B, T, H, V] and the slots after the last token."""

  def one_token(slots, xs):
    token, is_start_B = xs
    slots = select(is_start_B, start, slots)
    slots = step_token(rule, slots, token)
    return slots, jnp.einsum("BHM,BHMV->BHV", token.q_BTHM, slots.unit_BHMV, precision="highest")

  by_token = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(slots.unit_BHMV.dtype), 1, 0), tokens)
  slots, out_TBHV = jax.lax.scan(one_token, slots, (by_token, is_start_BT.T))
  return jnp.moveaxis(out_TBHV, 0, 1), slots


def step_token(rule: Rule, slots: Slots, token: Tokens) -> Slots:
  """s ← forget·s − step·∂loss/∂s, then the retraction; `token` lacks the axis T."""
  raw_BHMV = slots.unit_BHMV if slots.norm_BHM is None else slots.unit_BHMV * slots.norm_BHM[..., None]
  gradient_BHMV = inner_gradient(rule, raw_BHMV, token.k_BTHM, token.v_BTHV)
  moved_BHMV = raw_BHMV * token.forget_BTH[..., None, None] - gradient_BHMV * token.step_BTH[..., None, None]
  unit_BHMV, length_BHM = unit(moved_BHMV)
  return Slots(unit_BHMV, None if slots.norm_BHM is None else jnp.maximum(length_BHM, NORM_FLOOR))
