"""Forms that take the gates, the directions or whole steps of a chunk from the slots at its start.

Chunks are counted from the document's first token, blocks of the same length from the call's. In a block a row has the
rest of an open chunk, then tokens of chunks that begin in it: two passes, the second only where there are any.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.ops.lattice.chunk import (
  Chunk,
  Layout,
  directions,
  finish,
  frozen_directions,
  frozen_products,
  head_by_head,
  lay_out,
  make_gates,
  mix,
  project,
  with_rates,
)
from lattice_jax.ops.lattice.form import Form
from lattice_jax.ops.lattice.gates import gates
from lattice_jax.ops.lattice.grid import Grid
from lattice_jax.ops.lattice.rule import Rule
from lattice_jax.ops.lattice.sphere import TINY, unit
from lattice_jax.ops.lattice.state import Slots, select
from lattice_jax.ops.lattice.tokens import Tokens, from_chunks, mask, to_chunks
from lattice_jax.ops.lattice.walk import walk

# Slots at the start of the open chunk, and now; [B, H, M, V] each.
Open = tuple[jax.Array, jax.Array]


def lattice_chunked(
  rule: Rule, form: Form, tokens: Tokens, grid: Grid, start: Slots, slots: Open
) -> tuple[jax.Array, Open]:
  """Output [B, T, H, V] and the slots after the last token."""
  length = grid.is_start_BT.shape[1]
  rates = with_rates(tokens, slots[1].dtype)
  chunks = to_chunks(rates, grid, min(length, form.chunk_len))
  out_NBCHV, slots = walk(functools.partial(_block, rule, form), *chunks, start.unit_BHMV, slots)
  return from_chunks(out_NBCHV, length), slots


def _block(rule: Rule, form: Form, tokens_BC: Tokens, grid: Grid, start: jax.Array, slots: Open):
  run_BC = jnp.cumsum(grid.is_start_BT, 1)
  further_BC = grid.is_begin_BT.at[:, 0].set(False)
  is_new_BC = (jnp.cumsum(further_BC, 1) > 0) | (run_BC > 0)
  take = functools.partial(_take, rule, form, start=start)
  old_BC = mask(tokens_BC, ~is_new_BC)
  out_BCHV, slots = take(lay_out(jnp.zeros_like(grid.is_start_BT)), old_BC, slots)
  slots = _close((grid.is_end_BT & ~is_new_BC).any(1), slots)

  def second(slots: Open):
    out_BCHV, (anchor, now) = take(lay_out(grid.is_start_BT), mask(tokens_BC, is_new_BC), slots)
    anchor = select(run_BC[:, -1] > 0, start, anchor)
    return out_BCHV, _close((grid.is_end_BT & is_new_BC).any(1), (anchor, now))

  new_BCHV, slots = jax.lax.cond(is_new_BC.any(), second, lambda slots: (out_BCHV, slots), slots)
  return jnp.where(is_new_BC[..., None, None], new_BCHV, out_BCHV), slots


def _close(is_full_B: jax.Array, slots: Open) -> Open:
  """A full chunk ends with slots of length one, from which the next begins."""
  anchor, now = slots
  now = select(is_full_B, unit(now)[0], now)
  return select(is_full_B, now, anchor), now


def _take(rule: Rule, form: Form, layout: Layout, tokens_BC: Tokens, slots: Open, start: jax.Array):
  """Tokens that all belong to the open chunk, or to chunks that begin here."""
  anchor, now = slots
  frozen = head_by_head(tokens_BC, anchor, start)
  chunk = frozen._replace(slots=now)
  if form.name == "additive":
    out, now = _sum_of_steps(rule, layout, frozen, chunk)
  else:
    gate = make_gates(rule, frozen, layout, *frozen_products(rule, layout, frozen))
    is_live = form.name == "live"
    h = directions(rule, chunk, layout, gate) if is_live else frozen_directions(rule, frozen, layout)
    out, now = finish(chunk, layout, gate, h)
  return jnp.moveaxis(out, 1, 2), (anchor, now)


def _sum_of_steps(rule: Rule, layout: Layout, frozen: Chunk, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
  """Steps taken at the chunk's start and summed; every read divides by the length that the sum has by then."""
  h = frozen_directions(rule, frozen, layout)
  along, energy = project(frozen, layout, h), (h * h).sum(-1, keepdims=True)
  _, b = gates(rule, chunk.k, chunk.rate, jnp.ones_like(chunk.rate), along, None)
  # A step is b (h − lost ŝ), with ŝ the slot at the chunk's start.
  lost = along if rule.is_projected else jnp.zeros_like(along)
  upto = layout.is_same & jnp.tri(h.shape[2], dtype=bool)
  before = layout.is_same & jnp.tri(h.shape[2], k=-1, dtype=bool)

  def total(who, x):
    return jnp.einsum("bhjl,bhlm->bhjm", who.astype(x.dtype), x, precision="highest")

  pair = jnp.einsum("bhjv,bhlv->bhjl", h, h, precision="highest")
  moved = project(chunk, layout, h) - along * total(before, b * lost) + total(jnp.where(before, pair, 0), b)
  # Steps so far have no part along the slot at the start, so their sum has there what it began with.
  moved -= lost * jnp.where(layout.goes_on, (chunk.slots * frozen.slots).sum(-1)[:, :, None], 1)
  squared = jnp.where(layout.goes_on, (chunk.slots * chunk.slots).sum(-1)[:, :, None], 1)
  squared += total(upto, b * (2 * moved + b * (energy - lost * along)))
  read = chunk.q * jax.lax.rsqrt(jnp.maximum(squared, TINY**2))
  spent = total(upto, b * lost)
  weight = jnp.where(upto, jnp.einsum("bhjm,bhlm->bhjl", read, b, precision="highest"), 0)
  out = mix(chunk, layout, read) - mix(frozen, layout, read * spent)
  out += jnp.einsum("bhjl,bhlv->bhjv", weight, h, precision="highest")

  last = jnp.where(jnp.swapaxes(upto[:, :, -1:], 2, 3), b, 0)
  now = jnp.where(layout.goes_on[:, :, -1:], chunk.slots, chunk.start)
  now -= spent[:, :, -1, :, None] * jnp.where(layout.goes_on[:, :, -1:], frozen.slots, frozen.start)
  return out, now + jnp.einsum("bhlm,bhlv->bhmv", last, h, precision="highest")
