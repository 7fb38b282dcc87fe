"""Lattice by its definition: one gradient step a token, with the actual lengths of the slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.form import Form
from lattice_jax.memories.lattice.rule import Rule, incoming, inner_gradient
from lattice_jax.memories.lattice.sphere import unit
from lattice_jax.memories.lattice.state import NORM_FLOOR, LatticeSlots
from lattice_jax.memories.lattice.tokens import Tokens
from lattice_jax.ops.chunk_grid import ChunkGrid
from lattice_jax.ops.documents import select


def lattice_reference(
  rule: Rule, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> tuple[jax.Array, LatticeSlots]:
  """Output [B, T, H, V] and the slots after the last token."""

  def one_token(slots, xs):
    token, is_start_B = xs
    slots = select(is_start_B, start, slots)
    slots = step_token(rule, slots, token, start)
    return slots, jnp.einsum("BHM,BHMV->BHV", token.q_BTHM, slots.unit_BHMV, precision="highest")

  by_token = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(slots.unit_BHMV.dtype), 1, 0), tokens)
  slots, out_TBHV = jax.lax.scan(one_token, slots, (by_token, is_start_BT.T))
  return jnp.moveaxis(out_TBHV, 0, 1), slots


def lattice_loop(
  rule: Rule, form: Form, tokens: Tokens, grid: ChunkGrid, start: LatticeSlots, slots: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """What an approximate form means, token by token; slots are those at the start of the open chunk, and those now."""

  def one_token(carry, xs):
    token, (is_start_B, is_end_B) = xs
    anchor, now = select(is_start_B, (start.unit_BHMV,) * 2, carry)
    now = _approximate_step(rule, form, anchor, now, token)
    unit_BHMV, _ = unit(now)
    out_BHV = jnp.einsum(
      "BHM,BHMV->BHV", token.q_BTHM, unit_BHMV if form.name == "additive" else now, precision="highest")
    return (select(is_end_B, unit_BHMV, anchor), select(is_end_B, unit_BHMV, now)), out_BHV

  by_token = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(slots[1].dtype), 1, 0), tokens)
  slots, out_TBHV = jax.lax.scan(one_token, slots, (by_token, (grid.is_start_BT.T, grid.is_chunk_end_BT.T)))
  return jnp.moveaxis(out_TBHV, 0, 1), slots


def _approximate_step(rule, form, anchor, now, token) -> jax.Array:
  h_BHV, code_BHM = incoming(rule.objective, anchor, token.k_BTHM, token.v_BTHV)
  b_BHM = code_BHM * (token.step_BTH / token.forget_BTH)[..., None]
  along_BHM = jnp.einsum("BHMV,BHV->BHM", anchor, h_BHV, precision="highest")
  a_BHM = 1 - b_BHM * along_BHM if rule.is_projected else jnp.ones_like(b_BHM)
  if form.name == "additive":
    return now + (a_BHM - 1)[..., None] * anchor + b_BHM[..., None] * h_BHV[..., None, :]
  squared_BHM = a_BHM**2 + 2 * a_BHM * b_BHM * along_BHM + b_BHM**2 * (h_BHV**2).sum(-1, keepdims=True)
  if form.name == "live":
    h_BHV, _ = incoming(rule.objective, now, token.k_BTHM, token.v_BTHV)
  return (a_BHM[..., None] * now + b_BHM[..., None] * h_BHV[..., None, :]) * jax.lax.rsqrt(squared_BHM)[..., None]


def step_token(rule: Rule, slots: LatticeSlots, token: Tokens, start: LatticeSlots) -> LatticeSlots:
  """s ← forget·s − step·∂loss/∂s, then the retraction; `token` lacks the axis T.

  Slots that return add (1 − forget)·start before it.
  """
  raw_BHMV = slots.unit_BHMV if slots.norm_BHM is None else slots.unit_BHMV * slots.norm_BHM[..., None]
  gradient_BHMV = inner_gradient(rule, raw_BHMV, token.k_BTHM, token.v_BTHV)
  moved_BHMV = raw_BHMV * token.forget_BTH[..., None, None] - gradient_BHMV * token.step_BTH[..., None, None]
  if rule.state == "returning":
    moved_BHMV += (1 - token.forget_BTH[..., None, None]) * start.unit_BHMV
  unit_BHMV, length_BHM = unit(moved_BHMV)
  return LatticeSlots(unit_BHMV, None if slots.norm_BHM is None else jnp.maximum(length_BHM, NORM_FLOOR))
