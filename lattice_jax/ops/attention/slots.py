"""Attention to the slots of a stack of caches, read where they lie.

The caches of all layers are one array with layers in front, which decoding carries from layer to layer. The XLA form
slices blocks of slots out of it in a loop as long as the fullest row, so neither a copy of a layer nor work on empty
slots exists; it costs what is kept, whatever the room. Its backward pass is the definition's: training through a cache
is rare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.attention import merge
from lattice_jax.ops.attention.reference import MASKED, exp_masked
from lattice_jax.ops.documents import EMPTY, from_chunks, keep_only, to_chunks

_QUERY_BLOCK = 256


@flax.struct.dataclass
class StackedSlots:
  """Layer `layer` of key_LBHSK, value_LBHSV and position_LBHS; slots [0, length) of a row are in use.

  position_LBHS: int32, which token of its document a slot holds; EMPTY for none. Its first axis may be 1, where all
  layers hold the same.
  """

  key_LBHSK: jax.Array
  value_LBHSV: jax.Array
  position_LBHS: jax.Array
  layer: jax.Array
  length_B: jax.Array


@flax.struct.dataclass
class Readers:
  """index_BT: which token of its document each query is. sees_BT: whether its document is the slots'."""

  index_BT: jax.Array
  sees_BT: jax.Array


# (readers, position_BHS) → bool [B, H, T, S], whether a query may see the token at that position; hashable.
Rule = Callable[[Any, jax.Array], jax.Array]


@dataclass(frozen=True)
class SinksAndWindow:
  """The rule by which queries see the first `sinks` tokens of the document and the last `window`."""

  sinks: int
  window: int

  def __call__(self, readers: Readers, position_BHS: jax.Array) -> jax.Array:
    back_BHTS = readers.index_BT[:, None, :, None] - position_BHS[:, :, None]
    return (back_BHTS < self.window) | (position_BHS < self.sinks)[:, :, None]


def attend_slots(
  q: jax.Array, slots: StackedSlots, readers: Any, before: tuple[jax.Array, jax.Array], *, rule: Rule | None = None,
  block: int = 512, impl: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """As `attend`, over slots that may differ from head to head: fp32 output [B, T, H·G, V], log-sum-exp [B, T, H·G].

  before: such a pair of other keys, to which the slots are added.
  rule: which slots in use a query sees; None: all. It may read any fields of `readers`, which must have `sees_BT`.
  Queries that see no slots, invalid ones among them, are replaced by zeros at the door.
  """
  batch, length, num_queries, key_dim = q.shape
  heads, value_dim = slots.value_LBHSV.shape[2], slots.value_LBHSV.shape[-1]
  q = keep_only(readers.sees_BT, q)
  q_BTHGK = q.reshape(batch, length, heads, num_queries // heads, key_dim) * jnp.asarray(key_dim**-0.5, q.dtype)
  before = tuple(x.reshape(*q_BTHGK.shape[:4], *x.shape[3:]) for x in before)
  if choose_impl("attention", impl, pallas_reason="there is no Pallas kernel for it yet") == "reference":
    out, lse = merge(*before, *_attend_at_once(rule, q_BTHGK, slots, readers))
  else:
    out, lse = _attend(rule, equal_block(slots.key_LBHSK.shape[3], block), q_BTHGK, slots, readers, before)
  return out.reshape(batch, length, num_queries, value_dim), lse.reshape(batch, length, num_queries)


def equal_block(num_slots: int, block: int) -> int:
  """A length near `block`, a multiple of 32, of which a whole number of blocks covers the slots and few more.

  Blocks of 512 would read 1,536 slots where a window and its sinks have 1,060.
  """
  share = -(-num_slots // max(1, round(num_slots / block)))
  return min(num_slots, -(-share // 32) * 32)


def after_reading(layer: jax.Array, lse: jax.Array) -> jax.Array:
  """`layer`, known only once `lse` is: XLA writes in place when the write cannot come before the reads.

  A barrier would not do: backends remove it before they decide what to copy.
  """
  return layer + jnp.minimum(jnp.isnan(jax.lax.stop_gradient(lse).ravel()[0]).astype(layer.dtype), 0)


def slots_seen(readers: Any, position_BHS: jax.Array, rule: Rule | None) -> jax.Array:
  """Bool [B, H, T, S]."""
  holds_BHTS = (position_BHS != EMPTY)[:, :, None] & readers.sees_BT[:, None, :, None]
  return holds_BHTS & rule(readers, position_BHS) if rule is not None else holds_BHTS


def _layer_of(slots: StackedSlots, x_LBHS: jax.Array) -> jax.Array:
  return slots.layer if x_LBHS.shape[0] > 1 else jnp.zeros_like(slots.layer)


def _attend_at_once(rule, q_BTHGK, slots, readers):
  """The definition: every score at once, float32."""
  key_BHSK, value_BHSV = slots.key_LBHSK[slots.layer], slots.value_LBHSV[slots.layer]
  q_BTHGK, key_BHSK, value_BHSV = (x.astype(jnp.float32) for x in (q_BTHGK, key_BHSK, value_BHSV))
  score_BHGTS = jnp.einsum("BTHGK,BHSK->BHGTS", q_BTHGK, key_BHSK, precision="highest")
  position_BHS = slots.position_LBHS[_layer_of(slots, slots.position_LBHS)]
  seen_BHTS = slots_seen(readers, position_BHS, rule)[:, :, None]
  score_BHGTS = jnp.where(seen_BHTS, score_BHGTS, MASKED)
  top_BHGT = jax.lax.stop_gradient(score_BHGTS.max(-1))
  weight_BHGTS = jnp.where(seen_BHTS, jnp.exp(score_BHGTS - top_BHGT[..., None]), 0.0)
  total_BHGT = weight_BHGTS.sum(-1)
  safe_BHGT = jnp.where(total_BHGT > 0, total_BHGT, 1.0)
  out_BHGTV = jnp.einsum("BHGTS,BHSV->BHGTV", weight_BHGTS / safe_BHGT[..., None], value_BHSV, precision="highest")
  lse_BHGT = jnp.where(total_BHGT > 0, top_BHGT + jnp.log(safe_BHGT), MASKED)
  return jnp.moveaxis(out_BHGTV, 3, 1), jnp.moveaxis(lse_BHGT, 3, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rule, block, q_BTHGK, slots, readers, before):
  length = q_BTHGK.shape[1]
  if length <= _QUERY_BLOCK:
    return _one_query_block(rule, block, q_BTHGK, slots, readers, before)

  out, lse = jax.lax.map(
    lambda xs: _one_query_block(rule, block, xs[0], slots, *xs[1:]),
    to_chunks((q_BTHGK, readers, before), _QUERY_BLOCK))
  return from_chunks(out, length), from_chunks(lse, length)


def _one_query_block(rule, block, q_BTHGK, slots, readers, before):
  """The online softmax over blocks of slots, going on from `before`.

  Queries and the heads that share a key are one axis N, so that products come out in the order in which they are used.
  The output stays normalised and leaves the loop as one long row: what is left to compute after it, be it only finding
  the head of an element, XLA would repeat for each output of the projection that follows.
  """
  batch, length, heads, group, _ = q_BTHGK.shape
  num_slots = slots.key_LBHSK.shape[3]
  q_BHNK, out_BHNV, lse_BHN = (
    jnp.moveaxis(x, 1, 2).reshape(batch, heads, length * group, *x.shape[4:]) for x in (q_BTHGK, *before))

  def one_slot_block(n, carry):
    top, total, out_BHNV = *carry[:2], carry[2].reshape(shape)
    start = jnp.minimum(n * block, num_slots - block)

    def take(x_LBHS):
      sizes = (1, *x_LBHS.shape[1:3], block, *x_LBHS.shape[4:])
      first = _layer_of(slots, x_LBHS), 0, 0, start, *(0,) * (x_LBHS.ndim - 4)
      return jax.lax.dynamic_slice(x_LBHS, first, sizes)[0]

    key_BHCK, value_BHCV, position_BHC = (take(x) for x in (slots.key_LBHSK, slots.value_LBHSV, slots.position_LBHS))
    # The last block is moved back into the array; what it shares with the one before was read there.
    is_new_C = start + jnp.arange(block) >= n * block
    score_BHNC = jnp.einsum("BHNK,BHCK->BHNC", q_BHNK, key_BHCK, preferred_element_type=jnp.float32)
    if rule is not None:
      seen_BHTC = slots_seen(readers, position_BHC, rule)
      score_BHNC = jnp.where(jnp.repeat(seen_BHTC & is_new_C, group, axis=2), score_BHNC, MASKED)
    else:  # costs less than a comparison for every query and slot
      score_BHNC += jnp.where((position_BHC != EMPTY) & is_new_C, 0.0, MASKED)[:, :, None] + reader_BHN1
    new_top = jnp.maximum(top, score_BHNC.max(-1))
    weight_BHNC = exp_masked(score_BHNC, new_top[..., None])
    shrink = jnp.exp(top - new_top)
    update = jnp.einsum(
      "BHNC,BHCV->BHNV", weight_BHNC.astype(value_BHCV.dtype), value_BHCV, preferred_element_type=jnp.float32)
    kept = total * shrink
    total = kept + weight_BHNC.sum(-1)
    share = 1 / jnp.where(total > 0, total, 1.0)
    out_BHNV = out_BHNV * (kept * share)[..., None] + update * share[..., None]
    return new_top, total, out_BHNV.reshape(batch, -1)

  reader_BHN1 = jnp.repeat(jnp.where(readers.sees_BT, 0.0, MASKED), group, axis=1)[:, None, :, None]
  shape = out_BHNV.shape
  start = lse_BHN, (lse_BHN > MASKED / 2).astype(jnp.float32), out_BHNV.reshape(batch, -1)
  top, total, out = jax.lax.fori_loop(0, -(-slots.length_B.max() // block), one_slot_block, start)
  lse_BHN = jnp.where(total > 0, top + jnp.log(jnp.where(total > 0, total, 1.0)), MASKED)
  return tuple(
    jnp.moveaxis(x_BHN.reshape(batch, heads, length, group, *x_BHN.shape[3:]), 2, 1)
    for x_BHN in (out.reshape(shape), lse_BHN))


def _forward(rule, block, q_BTHGK, slots, readers, before):
  return _attend(rule, block, q_BTHGK, slots, readers, before), (q_BTHGK, slots, readers, before)


def _backward(rule, block, saved, cotangents):
  del block
  q_BTHGK, slots, readers, before = saved

  def definition(q_BTHGK, key_LBHSK, value_LBHSV, before):
    here = slots.replace(key_LBHSK=key_LBHSK, value_LBHSV=value_LBHSV)
    return merge(*before, *_attend_at_once(rule, q_BTHGK, here, readers))

  _, pull = jax.vjp(definition, q_BTHGK, slots.key_LBHSK, slots.value_LBHSV, before)
  d_q, d_key, d_value, d_before = pull(cotangents)
  nothing = StackedSlots(key_LBHSK=d_key, value_LBHSV=d_value, position_LBHS=None, layer=None, length_B=None)
  return d_q, nothing, jax.tree.map(lambda _: None, readers), d_before


_attend.defvjp(_forward, _backward)
