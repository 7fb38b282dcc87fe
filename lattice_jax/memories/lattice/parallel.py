"""The exact recurrence chunk by chunk: the gates of a chunk are the fixed point of a map made of matrix products.

The gates of a token depend on earlier tokens only, so C − 1 rounds are exact for C tokens, and far fewer are enough
(README.md of this folder). The backward pass solves the adjoint equation of the same fixed point in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.memories.lattice.chunk import (
  Chunk,
  ChunkDocuments,
  Products,
  chunk_documents,
  directions,
  finish,
  frozen_products,
  head_by_head,
  inner_products,
  make_gates,
  with_rates,
)
from lattice_jax.memories.lattice.form import Form
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.sphere import TINY, unit
from lattice_jax.memories.lattice.state import LatticeSlots
from lattice_jax.memories.lattice.tokens import Tokens, to_chunks
from lattice_jax.ops.chunk_scan import as_bits, as_floats
from lattice_jax.ops.documents import from_chunks
from lattice_jax.types import MEMORY_BOUNDARY

# Of every row: how far the furthest product moved in a round, and the longest direction, which it is compared with.
Change = tuple[jax.Array, jax.Array]


class Rounds(NamedTuple):
  """How the chunks of a call were solved.

  number: [N] int32, rounds that each took. change: [N], what its last round changed, as `Form.tolerance` measures it;
  0 where there was none.
  """

  number: jax.Array
  change: jax.Array


def lattice_parallel(
  rule: Rule, form: Form, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> tuple[jax.Array, LatticeSlots, Rounds]:
  """As `lattice_reference`, for retracted slots, and how many rounds it took."""
  length = is_start_BT.shape[1]
  chunk_len = min(length, form.chunk_len)
  # The first token needs no round, and every round makes at least one more exact.
  form = replace(form, rounds=min(form.rounds, chunk_len - 1))
  chunks = to_chunks(with_rates(tokens, slots.unit_BHMV.dtype), is_start_BT, chunk_len)
  out_NBCHV, unit_BHMV, rounds = _scan(rule, form, *chunks, start.unit_BHMV, slots.unit_BHMV)
  return from_chunks(out_NBCHV, length), LatticeSlots(unit_BHMV, None), rounds


def changes_by_round(
  rule: Rule, chunk_len: int, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots
) -> jax.Array:
  """[N, C]: what each of C rounds changes in each chunk, as `Form.tolerance` measures it."""
  chunk_len = min(is_start_BT.shape[1], chunk_len)

  def one_chunk(slots, xs):
    chunk, documents = head_by_head(xs[0], slots, start.unit_BHMV), chunk_documents(xs[1])

    def one_round(products, _):
      products, change = _next_products(rule, documents, chunk, products)
      return products, _relative(*change)

    products, change_C = jax.lax.scan(one_round, frozen_products(rule, documents, chunk), length=chunk_len)
    return _read(rule, documents, chunk, products)[1], change_C

  chunks = to_chunks(with_rates(tokens, slots.unit_BHMV.dtype), is_start_BT, chunk_len)
  return jax.lax.scan(one_chunk, slots.unit_BHMV, chunks)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(rule, form, tokens_NBC, is_start_NBC, start, slots):
  return _forward(rule, form, tokens_NBC, is_start_NBC, start, slots)[0]


def _forward(rule, form, tokens_NBC, is_start_NBC, start, slots):
  def one_chunk(slots, xs):
    tokens_bits, is_start_BC = xs
    chunk, documents = head_by_head(as_floats(tokens_bits, tokens_NBC), slots, start), chunk_documents(is_start_BC)
    products, *rounds = _solve(rule, form, documents, chunk)
    out, after = _read(rule, documents, chunk, products)
    return after, (jnp.moveaxis(out, 1, 2), slots, products, rounds)

  last, (out_NBCHV, boundary, products, (number_N, change_NB)) = jax.lax.scan(
    one_chunk, slots, (as_bits(tokens_NBC), is_start_NBC))
  out_NBCHV, boundary, products, last = checkpoint_name((out_NBCHV, boundary, products, last), MEMORY_BOUNDARY)
  # Rows are compared once for all chunks: within the loop every chunk would wait for all devices.
  rounds = Rounds(number_N, jax.vmap(_relative)(*change_NB))
  return (out_NBCHV, last, rounds), (tokens_NBC, is_start_NBC, start, boundary, products)


def _backward(rule, form, saved, cotangents):
  tokens_NBC, is_start_NBC, start, boundary, products = saved
  d_out_NBCHV, d_last, _ = cotangents

  def one_chunk(carry, xs):
    d_after, d_start = carry
    tokens_bits, is_start_BC, slots, products, d_out_BCHV = xs
    documents = chunk_documents(is_start_BC)
    chunk, pull_chunk = jax.vjp(head_by_head, as_floats(tokens_bits, tokens_NBC), slots, start)
    d_chunk = _chunk_adjoint(rule, form, documents, chunk, products, (jnp.moveaxis(d_out_BCHV, 1, 2), d_after))
    d_tokens_BC, d_slots, d_start_here = pull_chunk(d_chunk)
    return (d_slots, d_start + d_start_here), as_bits(d_tokens_BC)

  (d_slots, d_start), d_tokens_NBC = jax.lax.scan(
    one_chunk, (d_last, jnp.zeros_like(start)), (as_bits(tokens_NBC), is_start_NBC, boundary, products, d_out_NBCHV),
    reverse=True)
  return as_floats(d_tokens_NBC, tokens_NBC), None, d_start, d_slots


_scan.defvjp(_forward, _backward)


def _chunk_adjoint(rule, form, documents, chunk, products, cotangents) -> Chunk:
  """Adjoint of the fixed point x = F(chunk, x): what reaches x goes back through F, round by round."""
  _, pull_read = jax.vjp(functools.partial(_read, rule, documents), chunk, products)
  _, pull_round = jax.vjp(functools.partial(_round, rule, documents), chunk, products)
  _, pull_frozen = jax.vjp(functools.partial(frozen_products, rule, documents), chunk)

  def one_round(carry):
    total, term = carry
    total = jax.tree.map(jnp.add, total, term)
    term = pull_round(term)[1]
    return (total, term), (_largest(term), _largest(total))

  d_chunk, term = pull_read(cotangents)
  (total, term), *_ = _iterate(form, one_round, (jax.tree.map(jnp.zeros_like, term), term))
  # What is left goes to where the iteration began: everything if there are no rounds, nothing after enough of them.
  return jax.tree.map(lambda *parts: sum(parts), d_chunk, pull_round(total)[0], pull_frozen(term)[0])


def _solve(rule: Rule, form: Form, documents: ChunkDocuments, chunk: Chunk) -> tuple[Products, jax.Array, Change]:
  """The fixed point, from the products that the slots at the chunk's start would give; rounds and the last change."""
  one_round = functools.partial(_next_products, rule, documents, chunk)
  return _iterate(form, one_round, frozen_products(rule, documents, chunk))


def _next_products(rule: Rule, documents: ChunkDocuments, chunk: Chunk, products: Products) -> tuple[Products, Change]:
  """One round, and how much it changed."""
  along, energy = _round(rule, documents, chunk, products)
  return (along, energy), (_largest(along - products[0]), jnp.sqrt(_largest(energy)))


def _iterate(
  form: Form, one_round: Callable[[Any], tuple[Any, Change]], x: Any
) -> tuple[Any, jax.Array, Change]:
  """`one_round` gives the next x and how much changed; ends as `form` says. Last x, number of rounds, last change."""
  zero_B = jnp.zeros_like(_largest(x))
  first = x, jnp.int32(0), (zero_B, zero_B)

  def advance(carry):
    x, num_rounds, _ = carry
    x, change = one_round(x)
    return x, num_rounds + 1, change

  if not form.tolerance:
    return jax.lax.fori_loop(0, form.rounds, lambda _, carry: advance(carry), first)

  def goes_on(carry):
    _, num_rounds, change = carry
    return ((num_rounds == 0) | (_relative(*change) > form.tolerance)) & (num_rounds < form.rounds)

  return jax.lax.while_loop(goes_on, advance, first)


def _round(rule: Rule, documents: ChunkDocuments, chunk: Chunk, products: Products) -> Products:
  """The products of slots that evolve under the gates that `products` make, with the gates then made once more.

  The second pass keeps the directions, so it needs no product of size V; it makes eight rounds ten times as exact.
  """
  gate = make_gates(rule, chunk, documents, *products)
  h = directions(rule, chunk, documents, gate)
  energy = (h * h).sum(-1, keepdims=True)
  # No inner product with a slot of length one exceeds the length of h: this keeps the first rounds from overflowing. It
  # is no part of the map whose fixed point is sought, so it has no gradient.
  length = jnp.sqrt(jax.lax.stop_gradient(energy))
  products_of = inner_products(chunk, documents, h)

  def along(gate):
    along = products_of(gate)
    return along + jax.lax.stop_gradient(jnp.clip(along, -length, length) - along)

  return along(make_gates(rule, chunk, documents, along(gate), energy)), energy


def _read(rule: Rule, documents: ChunkDocuments, chunk: Chunk, products: Products) -> tuple[jax.Array, jax.Array]:
  """Outputs under those gates, and the slots after the chunk with their true lengths put back to one."""
  gate = make_gates(rule, chunk, documents, *products)
  out, slots = finish(chunk, documents, gate, directions(rule, chunk, documents, gate))
  return out, unit(slots)[0]


def _largest(tree: Any) -> jax.Array:
  """[B], magnitudes."""
  return functools.reduce(
    jnp.maximum, (jnp.abs(leaf).max(range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)))


def _relative(moved_B: jax.Array, size_B: jax.Array) -> jax.Array:
  return moved_B.max() / jnp.maximum(size_B.max(), TINY)
