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
  """Tokens of a chunk, head by head, and the slots they begin from.

  q, k: [B, H, C, M]. v: [B, H, C, V]. rate: step/forget, [B, H, C, 1]. slots: [B, H, M, V]. start: [H, M, V].
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  rate: jax.Array
  slots: jax.Array
  start: jax.Array


def with_rates(tokens: Tokens, dtype: jnp.dtype) -> Tokens:
  """step/forget as step: forgetting a slot that is put back to length one is a larger step."""
  return tokens.replace(step_BTH=tokens.step_BTH.astype(dtype) / tokens.forget_BTH.astype(dtype))


def head_by_head(tokens_BC: Tokens, slots: jax.Array, start: jax.Array) -> Chunk:
  """[B, C, H, …] → [B, H, C, …] in the state's dtype."""
  fields = tokens_BC.q_BTHM, tokens_BC.k_BTHM, tokens_BC.v_BTHV, tokens_BC.step_BTH[..., None]
  return Chunk(*(jnp.moveaxis(x.astype(slots.dtype), 1, 2) for x in fields), slots, start)


class Layout(NamedTuple):
  """Who of a chunk is in whose document, bool.

  goes_on: [B, 1, C, 1], of the document of the slots. is_first: [B, 1, C, 1], begins one. is_same: [B, 1, C, C], of
  one document.
  """

  goes_on: jax.Array
  is_first: jax.Array
  is_same: jax.Array


def lay_out(is_start_BC: jax.Array) -> Layout:
  run_BC = jnp.cumsum(is_start_BC, 1)
  return Layout(
    (run_BC == 0)[:, None, :, None], is_start_BC[:, None, :, None], (run_BC[:, :, None] == run_BC[:, None])[:, None])


# What gates are made of: inner products of slots and directions [B, H, C, M], and squared lengths of directions.
Products = tuple[jax.Array, jax.Array]


class Gates(NamedTuple):
  """What the gates make of a chunk.

  keep, write: [B, H, C, M], a token makes keep·ŝ + write·h of a slot. before: [B, H, C, M], the share of the slots at
  the chunk's start, or of `start`, that is left just before a token. between: [B, H, C, C, M], what is left just before
  token j of what token l < j wrote, times its write.
  """

  keep: jax.Array
  write: jax.Array
  before: jax.Array
  between: jax.Array


def make_gates(rule: Rule, chunk: Chunk, layout: Layout, along: jax.Array, energy: jax.Array) -> Gates:
  """Gates of every token from the inner products of slots and directions, as if all slots were of length one."""
  a, b = gates(rule, chunk.k, chunk.rate, jnp.ones_like(chunk.rate), along, None)
  growth = 1 + b**2 * jnp.maximum(energy - along**2, 0) if rule.is_projected else 1 + b * (2 * along + b * energy)
  shrink = jax.lax.rsqrt(jnp.maximum(growth, TINY**2))
  keep, write = a * shrink, b * shrink
  size = keep.shape[2]
  is_after = jnp.arange(size)[:, None] - jnp.arange(-1, size) > 1  # [j, l + 1]: token j − 1 comes after l
  previous = jnp.pad(keep, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
  kept = jnp.cumprod(jnp.where(is_after[..., None], previous[:, :, :, None], 1), axis=2)
  from_slots, kept = kept[:, :, :, 0], kept[:, :, :, 1:]
  is_earlier = layout.is_same & jnp.tri(size, k=-1, dtype=bool)
  kept = jnp.where(is_earlier[..., None], kept, 0)
  from_start = jnp.einsum("bhjlm,bhlm->bhjm", kept, jnp.where(layout.is_first, keep, 0), precision="highest")
  from_start = jnp.where(layout.is_first, 1, from_start)
  return Gates(keep, write, jnp.where(layout.goes_on, from_slots, from_start), _written(kept, write))


@jax.custom_vjp
def _written(kept: jax.Array, write: jax.Array) -> jax.Array:
  """What is left of every write: [B, H, C, C, M] and [B, H, C, M] → [B, H, C, C, M].

  The sum over later tokens that its gradient takes is a product with ones, which XLA runs faster on CPUs.
  """
  return kept * write[:, :, None]


def _written_forward(kept, write):
  return _written(kept, write), (kept, write)


def _written_backward(saved, d_between):
  kept, write = saved
  ones = jnp.ones(kept.shape[2], kept.dtype)
  return d_between * write[:, :, None], jnp.einsum("j,bhjlm->bhlm", ones, d_between * kept, precision="highest")


_written.defvjp(_written_forward, _written_backward)


def directions(rule: Rule, chunk: Chunk, layout: Layout, gate: Gates) -> jax.Array:
  """h of every token, [B, H, C, V], when slots evolve under these gates."""
  if rule.objective != "decoding":
    return chunk.v
  base = chunk.v - mix(chunk, layout, chunk.k * gate.before)
  pair = jnp.einsum("bhjm,bhjlm->bhjl", chunk.k, gate.between, precision="highest")
  return jnp.einsum("bhjl,bhlv->bhjv", inverse_unit_lower(pair), base, precision="highest")


def frozen_directions(rule: Rule, chunk: Chunk, layout: Layout) -> jax.Array:
  """h of every token as if no token of the chunk had written anything."""
  return chunk.v - mix(chunk, layout, chunk.k) if rule.objective == "decoding" else chunk.v


def frozen_products(rule: Rule, layout: Layout, chunk: Chunk) -> Products:
  """The products as if no token of the chunk had written anything."""
  h = frozen_directions(rule, chunk, layout)
  return project(chunk, layout, h), (h * h).sum(-1, keepdims=True)


def inner_products(chunk: Chunk, layout: Layout, h: jax.Array) -> Callable[[Gates], jax.Array]:
  """For given directions: gates → the inner products of every token's direction with the slots before it."""
  at_start = project(chunk, layout, h)
  pair = jnp.einsum("bhjv,bhlv->bhjl", h, h, precision="highest")

  def along(gate: Gates) -> jax.Array:
    return gate.before * at_start + jnp.einsum("bhjl,bhjlm->bhjm", pair, gate.between, precision="highest")

  return along


def finish(chunk: Chunk, layout: Layout, gate: Gates, h: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Outputs [B, H, C, V] and the slots after the chunk, as the gates leave them."""
  read = chunk.q * gate.keep
  pair = jnp.einsum("bhjm,bhjlm->bhjl", read, gate.between, precision="highest")
  out = mix(chunk, layout, read * gate.before) + jnp.einsum("bhjl,bhlv->bhjv", pair, h, precision="highest")
  out += (chunk.q * gate.write).sum(-1, keepdims=True) * h

  last_keep = gate.keep[:, :, -1]
  written = (gate.between[:, :, -1] * last_keep[:, :, None]).at[:, :, -1].set(gate.write[:, :, -1])
  slots = jnp.where(layout.goes_on[:, :, -1:], chunk.slots, chunk.start)
  slots = (gate.before[:, :, -1] * last_keep)[..., None] * slots
  slots += jnp.einsum("bhlm,bhlv->bhmv", written, h, precision="highest")
  return out, slots


def project(chunk: Chunk, layout: Layout, h: jax.Array) -> jax.Array:
  """[B, H, C, M]: inner products of every token's vector with the slots of its document at the chunk's start."""
  old = jnp.einsum("bhmv,bhcv->bhcm", chunk.slots, h, precision="highest")
  new = jnp.einsum("hmv,bhcv->bhcm", chunk.start, h, precision="highest")
  return jnp.where(layout.goes_on, old, new)


def mix(chunk: Chunk, layout: Layout, weight: jax.Array) -> jax.Array:
  """[B, H, C, V]: sums of those slots with every token's weights."""
  old = jnp.einsum("bhcm,bhmv->bhcv", weight, chunk.slots, precision="highest")
  new = jnp.einsum("bhcm,hmv->bhcv", weight, chunk.start, precision="highest")
  return jnp.where(layout.goes_on, old, new)
