"""Forms that take the gates, the directions or whole steps of a chunk from the slots at its start.

Chunks are counted from the document's first token, blocks of the same length from the call's.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.chunk import (
  Chunk,
  ChunkDocuments,
  chunk_documents,
  directions,
  finish,
  frozen_directions,
  frozen_products,
  head_by_head,
  make_gates,
  mix,
  project,
  with_rates,
)
from lattice_jax.memories.lattice.form import Form
from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.sphere import TINY, unit
from lattice_jax.memories.lattice.state import LatticeSlots
from lattice_jax.memories.lattice.tokens import Tokens, mask, to_chunks
from lattice_jax.ops.chunk_grid import ChunkGrid, in_two_passes
from lattice_jax.ops.chunk_scan import scan_chunks
from lattice_jax.ops.documents import from_chunks, select

# Slots at the start of the open chunk, and now; [B, H, M, V] each.
Open = tuple[jax.Array, jax.Array]


def lattice_chunked(
  rule: Rule, form: Form, tokens: Tokens, grid: ChunkGrid, start: LatticeSlots, slots: Open
) -> tuple[jax.Array, Open]:
  """Output [B, T, H, V] and the slots after the last token."""
  length = grid.is_start_BT.shape[1]
  rates = with_rates(tokens, slots[1].dtype)
  chunks = to_chunks(rates, grid, min(length, form.chunk_len))
  out_NBCHV, slots = scan_chunks(functools.partial(_block, rule, form), *chunks, start.unit_BHMV, slots)
  return from_chunks(out_NBCHV, length), slots


def _block(rule: Rule, form: Form, tokens_BC: Tokens, grid: ChunkGrid, start: jax.Array, slots: Open):
  take = functools.partial(_take, rule, form, start)
  return in_two_passes(take, _close, mask, tokens_BC, grid, slots)


def _close(is_full_B: jax.Array, slots: Open) -> Open:
  """A full chunk ends with slots of length one, from which the next begins."""
  anchor, now = slots
  now = select(is_full_B, unit(now)[0], now)
  return select(is_full_B, now, anchor), now


def _take(rule: Rule, form: Form, start: jax.Array, tokens_BC: Tokens, grid: ChunkGrid, slots: Open):
  """Tokens that all belong to the open chunk, or to chunks that begin here."""
  documents = chunk_documents(grid.is_start_BT)
  anchor, now = slots
  frozen = head_by_head(tokens_BC, anchor, start)
  chunk = frozen._replace(slots_BHMV=now)
  if form.name == "additive":
    out, now = _sum_of_steps(rule, documents, frozen, chunk)
  else:
    gate = make_gates(rule, frozen, documents, *frozen_products(rule, documents, frozen))
    is_live = form.name == "live"
    h = directions(rule, chunk, documents, gate) if is_live else frozen_directions(rule, frozen, documents)
    out, now = finish(chunk, documents, gate, h)
  return jnp.moveaxis(out, 1, 2), (select(grid.is_start_BT.any(1), start, anchor), now)


def _sum_of_steps(rule: Rule, documents: ChunkDocuments, frozen: Chunk, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
  """Steps taken at the chunk's start and summed; every read divides by the length that the sum has by then."""
  h_BHCV = frozen_directions(rule, frozen, documents)
  along_BHCM, energy_BHC1 = project(frozen, documents, h_BHCV), (h_BHCV * h_BHCV).sum(-1, keepdims=True)
  _, b_BHCM = gates(rule, chunk.k_BHCM, chunk.rate_BHC1, jnp.ones_like(chunk.rate_BHC1), along_BHCM, None)
  # A step is b (h − lost ŝ), with ŝ the slot at the chunk's start.
  lost_BHCM = along_BHCM if rule.is_projected else jnp.zeros_like(along_BHCM)
  upto_BHCS = documents.is_same_BHCS & jnp.tri(h_BHCV.shape[2], dtype=bool)
  before_BHCS = documents.is_same_BHCS & jnp.tri(h_BHCV.shape[2], k=-1, dtype=bool)
  goes_on_BHC1 = documents.goes_on_BHC1

  def total(who_BHCS, x_BHSM):
    return jnp.einsum("BHCS,BHSM->BHCM", who_BHCS.astype(x_BHSM.dtype), x_BHSM, precision="highest")

  pair_BHCS = jnp.einsum("BHCV,BHSV->BHCS", h_BHCV, h_BHCV, precision="highest")
  moved_BHCM = project(chunk, documents, h_BHCV) - along_BHCM * total(before_BHCS, b_BHCM * lost_BHCM) + total(
    jnp.where(before_BHCS, pair_BHCS, 0), b_BHCM)
  # Steps so far have no part along the slot at the start, so their sum has there what it began with.
  moved_BHCM -= lost_BHCM * jnp.where(
    goes_on_BHC1, (chunk.slots_BHMV * frozen.slots_BHMV).sum(-1)[:, :, None], 1)
  squared_BHCM = jnp.where(goes_on_BHC1, (chunk.slots_BHMV * chunk.slots_BHMV).sum(-1)[:, :, None], 1)
  squared_BHCM += total(
    upto_BHCS, b_BHCM * (2 * moved_BHCM + b_BHCM * (energy_BHC1 - lost_BHCM * along_BHCM)))
  read_BHCM = chunk.q_BHCM * jax.lax.rsqrt(jnp.maximum(squared_BHCM, TINY**2))
  spent_BHCM = total(upto_BHCS, b_BHCM * lost_BHCM)
  weight_BHCS = jnp.einsum("BHCM,BHSM->BHCS", read_BHCM, b_BHCM, precision="highest")
  weight_BHCS = jnp.where(upto_BHCS, weight_BHCS, 0)
  out_BHCV = mix(chunk, documents, read_BHCM) - mix(frozen, documents, read_BHCM * spent_BHCM)
  out_BHCV += jnp.einsum("BHCS,BHSV->BHCV", weight_BHCS, h_BHCV, precision="highest")

  last_BHSM = jnp.where(jnp.swapaxes(upto_BHCS[:, :, -1:], 2, 3), b_BHCM, 0)
  now_BHMV = jnp.where(goes_on_BHC1[:, :, -1:], chunk.slots_BHMV, chunk.start_HMV)
  now_BHMV -= spent_BHCM[:, :, -1, :, None] * jnp.where(
    goes_on_BHC1[:, :, -1:], frozen.slots_BHMV, frozen.start_HMV)
  return out_BHCV, now_BHMV + jnp.einsum("BHSM,BHSV->BHMV", last_BHSM, h_BHCV, precision="highest")
