"""Forms that take the gates, the directions or whole steps of a chunk from the slots at its start.

Chunks are counted from the document's first token, blocks of the same length from the call's.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.chunk import (
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
from lattice_jax.memories.lattice.form import Form
from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.sphere import TINY, unit
from lattice_jax.memories.lattice.state import Slots
from lattice_jax.memories.lattice.tokens import Tokens, mask, to_chunks
from lattice_jax.ops.chunk_grid import Grid, in_two_passes
from lattice_jax.ops.chunk_scan import scan_chunks
from lattice_jax.ops.documents import from_chunks, select

# Slots at the start of the open chunk, and now; [B, H, M, V] each.
Open = tuple[jax.Array, jax.Array]


def lattice_chunked(
  rule: Rule, form: Form, tokens: Tokens, grid: Grid, start: Slots, slots: Open
) -> tuple[jax.Array, Open]:
  """Output [B, T, H, V] and the slots after the last token."""
  length = grid.is_start_BT.shape[1]
  rates = with_rates(tokens, slots[1].dtype)
  chunks = to_chunks(rates, grid, min(length, form.chunk_len))
  out_NBCHV, slots = scan_chunks(functools.partial(_block, rule, form), *chunks, start.unit_BHMV, slots)
  return from_chunks(out_NBCHV, length), slots


def _block(rule: Rule, form: Form, tokens_BC: Tokens, grid: Grid, start: jax.Array, slots: Open):
  take = functools.partial(_take, rule, form, start)
  return in_two_passes(take, _close, mask, tokens_BC, grid, slots)


def _close(is_full_B: jax.Array, slots: Open) -> Open:
  """A full chunk ends with slots of length one, from which the next begins."""
  anchor, now = slots
  now = select(is_full_B, unit(now)[0], now)
  return select(is_full_B, now, anchor), now


def _take(rule: Rule, form: Form, start: jax.Array, tokens_BC: Tokens, grid: Grid, slots: Open):
  """Tokens that all belong to the open chunk, or to chunks that begin here."""
  layout = lay_out(grid.is_start_BT)
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
  return jnp.moveaxis(out, 1, 2), (select(grid.is_start_BT.any(1), start, anchor), now)


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
