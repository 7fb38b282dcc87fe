"""A chunk of tokens in matrix products, given the gates of every slot at every token.

Products of gates over stretches of tokens are made as products, never as quotients of cumulative ones: a gate may be
zero, negative, or above one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.gates import gates
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.sphere import TINY
from lattice_jax.memories.lattice.tokens import Tokens
from lattice_jax.ops.triangular import inverse_unit_lower


class Chunk(NamedTuple):
  """Tokens of a chunk, head by head, and the slots they begin from. rate: step/forget."""

  q_BHCM: jax.Array
  k_BHCM: jax.Array
  v_BHCV: jax.Array
  rate_BHC1: jax.Array
  slots_BHMV: jax.Array
  start_HMV: jax.Array


def with_rates(tokens: Tokens, dtype: jnp.dtype) -> Tokens:
  """step/forget as step: forgetting a slot that is put back to length one is a larger step."""
  return tokens.replace(step_BTH=tokens.step_BTH.astype(dtype) / tokens.forget_BTH.astype(dtype))


def head_by_head(tokens_BC: Tokens, slots_BHMV: jax.Array, start_HMV: jax.Array) -> Chunk:
  """[B, C, H, …] → [B, H, C, …] in the state's dtype."""
  fields = tokens_BC.q_BTHM, tokens_BC.k_BTHM, tokens_BC.v_BTHV, tokens_BC.step_BTH[..., None]
  return Chunk(*(jnp.moveaxis(x.astype(slots_BHMV.dtype), 1, 2) for x in fields), slots_BHMV, start_HMV)


class ChunkDocuments(NamedTuple):
  """Which tokens of a chunk belong to which document, bool; the axis of heads has length one.

  goes_on: belongs to the document of the slots. is_first: begins a document. is_same: two tokens share their document.
  """

  goes_on_BHC1: jax.Array
  is_first_BHC1: jax.Array
  is_same_BHCS: jax.Array


def chunk_documents(is_start_BC: jax.Array) -> ChunkDocuments:
  """The documents of a chunk, some tokens of which begin one."""
  run_BC = jnp.cumsum(is_start_BC, 1)
  return ChunkDocuments(
    (run_BC == 0)[:, None, :, None], is_start_BC[:, None, :, None], (run_BC[:, :, None] == run_BC[:, None])[:, None])


# What gates are made of: inner products of slots and directions [B, H, C, M], and squared lengths of directions.
Products = tuple[jax.Array, jax.Array]


class Gates(NamedTuple):
  """What the gates make of a chunk.

  keep, write: a token makes keep·ŝ + write·h of a slot. before: the share of the slots at the chunk's start, or of
  `start`, that is left just before a token. between: what is left just before token c of what token s < c wrote, times
  its write.
  """

  keep_BHCM: jax.Array
  write_BHCM: jax.Array
  before_BHCM: jax.Array
  between_BHCSM: jax.Array


def make_gates(
  rule: Rule, chunk: Chunk, documents: ChunkDocuments, along_BHCM: jax.Array, energy_BHC1: jax.Array
) -> Gates:
  """Gates of every token from the inner products of slots and directions, as if all slots were of length one."""
  a_BHCM, b_BHCM = gates(rule, chunk.k_BHCM, chunk.rate_BHC1, jnp.ones_like(chunk.rate_BHC1), along_BHCM, None)
  if rule.is_projected:
    growth_BHCM = 1 + b_BHCM**2 * jnp.maximum(energy_BHC1 - along_BHCM**2, 0)
  else:
    growth_BHCM = 1 + b_BHCM * (2 * along_BHCM + b_BHCM * energy_BHC1)
  shrink_BHCM = jax.lax.rsqrt(jnp.maximum(growth_BHCM, TINY**2))
  keep_BHCM, write_BHCM = a_BHCM * shrink_BHCM, b_BHCM * shrink_BHCM
  size = keep_BHCM.shape[2]
  is_after = jnp.arange(size)[:, None] - jnp.arange(-1, size) > 1  # [c, s + 1]: token c − 1 comes after s
  previous_BHCM = jnp.pad(keep_BHCM, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
  kept = jnp.cumprod(jnp.where(is_after[..., None], previous_BHCM[:, :, :, None], 1), axis=2)
  from_slots_BHCM, kept_BHCSM = kept[:, :, :, 0], kept[:, :, :, 1:]
  is_earlier_BHCS = documents.is_same_BHCS & jnp.tri(size, k=-1, dtype=bool)
  kept_BHCSM = jnp.where(is_earlier_BHCS[..., None], kept_BHCSM, 0)
  first_keep_BHSM = jnp.where(documents.is_first_BHC1, keep_BHCM, 0)
  from_start_BHCM = jnp.einsum("BHCSM,BHSM->BHCM", kept_BHCSM, first_keep_BHSM, precision="highest")
  from_start_BHCM = jnp.where(documents.is_first_BHC1, 1, from_start_BHCM)
  before_BHCM = jnp.where(documents.goes_on_BHC1, from_slots_BHCM, from_start_BHCM)
  return Gates(keep_BHCM, write_BHCM, before_BHCM, _written(kept_BHCSM, write_BHCM))


@jax.custom_vjp
def _written(kept_BHCSM: jax.Array, write_BHSM: jax.Array) -> jax.Array:
  """What is left of every write, [B, H, C, S, M].

  The sum over later tokens that its gradient takes is a product with ones, which XLA runs faster on CPUs.
  """
  return kept_BHCSM * write_BHSM[:, :, None]


def _written_forward(kept_BHCSM, write_BHSM):
  return _written(kept_BHCSM, write_BHSM), (kept_BHCSM, write_BHSM)


def _written_backward(saved, d_between_BHCSM):
  kept_BHCSM, write_BHSM = saved
  ones_C = jnp.ones(kept_BHCSM.shape[2], kept_BHCSM.dtype)
  d_write_BHSM = jnp.einsum("C,BHCSM->BHSM", ones_C, d_between_BHCSM * kept_BHCSM, precision="highest")
  return d_between_BHCSM * write_BHSM[:, :, None], d_write_BHSM


_written.defvjp(_written_forward, _written_backward)


def directions(rule: Rule, chunk: Chunk, documents: ChunkDocuments, gate: Gates) -> jax.Array:
  """h of every token, [B, H, C, V], when slots evolve under these gates."""
  if rule.objective != "decoding":
    return chunk.v_BHCV
  base_BHCV = chunk.v_BHCV - mix(chunk, documents, chunk.k_BHCM * gate.before_BHCM)
  pair_BHCS = jnp.einsum("BHCM,BHCSM->BHCS", chunk.k_BHCM, gate.between_BHCSM, precision="highest")
  return jnp.einsum("BHCS,BHSV->BHCV", inverse_unit_lower(pair_BHCS), base_BHCV, precision="highest")


def frozen_directions(rule: Rule, chunk: Chunk, documents: ChunkDocuments) -> jax.Array:
  """h of every token as if no token of the chunk had written anything."""
  return chunk.v_BHCV - mix(chunk, documents, chunk.k_BHCM) if rule.objective == "decoding" else chunk.v_BHCV


def frozen_products(rule: Rule, documents: ChunkDocuments, chunk: Chunk) -> Products:
  """The products as if no token of the chunk had written anything."""
  h_BHCV = frozen_directions(rule, chunk, documents)
  return project(chunk, documents, h_BHCV), (h_BHCV * h_BHCV).sum(-1, keepdims=True)


def inner_products(chunk: Chunk, documents: ChunkDocuments, h_BHCV: jax.Array) -> Callable[[Gates], jax.Array]:
  """For given directions: gates → the inner products of every token's direction with the slots before it."""
  at_start_BHCM = project(chunk, documents, h_BHCV)
  pair_BHCS = jnp.einsum("BHCV,BHSV->BHCS", h_BHCV, h_BHCV, precision="highest")

  def along(gate: Gates) -> jax.Array:
    return gate.before_BHCM * at_start_BHCM + jnp.einsum(
      "BHCS,BHCSM->BHCM", pair_BHCS, gate.between_BHCSM, precision="highest")

  return along


def finish(chunk: Chunk, documents: ChunkDocuments, gate: Gates, h_BHCV: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Outputs [B, H, C, V] and the slots after the chunk, as the gates leave them."""
  read_BHCM = chunk.q_BHCM * gate.keep_BHCM
  pair_BHCS = jnp.einsum("BHCM,BHCSM->BHCS", read_BHCM, gate.between_BHCSM, precision="highest")
  out_BHCV = mix(chunk, documents, read_BHCM * gate.before_BHCM) + jnp.einsum(
    "BHCS,BHSV->BHCV", pair_BHCS, h_BHCV, precision="highest")
  out_BHCV += (chunk.q_BHCM * gate.write_BHCM).sum(-1, keepdims=True) * h_BHCV

  last_keep_BHM = gate.keep_BHCM[:, :, -1]
  written_BHSM = gate.between_BHCSM[:, :, -1] * last_keep_BHM[:, :, None]
  written_BHSM = written_BHSM.at[:, :, -1].set(gate.write_BHCM[:, :, -1])
  slots_BHMV = jnp.where(documents.goes_on_BHC1[:, :, -1:], chunk.slots_BHMV, chunk.start_HMV)
  slots_BHMV = (gate.before_BHCM[:, :, -1] * last_keep_BHM)[..., None] * slots_BHMV
  slots_BHMV += jnp.einsum("BHSM,BHSV->BHMV", written_BHSM, h_BHCV, precision="highest")
  return out_BHCV, slots_BHMV


def project(chunk: Chunk, documents: ChunkDocuments, h_BHCV: jax.Array) -> jax.Array:
  """[B, H, C, M]: inner products of every token's vector with the slots of its document at the chunk's start."""
  old_BHCM = jnp.einsum("BHMV,BHCV->BHCM", chunk.slots_BHMV, h_BHCV, precision="highest")
  new_BHCM = jnp.einsum("HMV,BHCV->BHCM", chunk.start_HMV, h_BHCV, precision="highest")
  return jnp.where(documents.goes_on_BHC1, old_BHCM, new_BHCM)


def mix(chunk: Chunk, documents: ChunkDocuments, weight_BHCM: jax.Array) -> jax.Array:
  """[B, H, C, V]: sums of those slots with every token's weights."""
  old_BHCV = jnp.einsum("BHCM,BHMV->BHCV", weight_BHCM, chunk.slots_BHMV, precision="highest")
  new_BHCV = jnp.einsum("BHCM,HMV->BHCV", weight_BHCM, chunk.start_HMV, precision="highest")
  return jnp.where(documents.goes_on_BHC1, old_BHCV, new_BHCV)
