"""What heads with one window keep of their document: its first tokens, and a ring of the last W others.

A token's slot follows from its index, and which token a slot holds from the number of tokens so far, so that no indices
are stored and nothing is ever moved.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.attention.slots import Readers, SinksAndWindow, StackedSlots, attend_slots
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.local.far import Leaving, leaving_of, no_one_leaves
from lattice_jax.ops.local.heads import ALL
from lattice_jax.ops.local.scores import Scores, score_leaving


@flax.struct.dataclass
class Ring:
  """Keys, rotary embedding included, and values of the heads of one group in the layers that have one window.

  In a stack, layers with that window are in front; `HeadGroup.place` says where each lies.
  """

  key_BHSK: jax.Array
  value_BHSV: jax.Array

  @property
  def num_slots(self) -> int:
    return self.key_BHSK.shape[-2]


def num_slots(sinks: int, window: int, max_len: int) -> int:
  """Slots for documents of at most `max_len` tokens."""
  return max_len if window == ALL else min(max_len, sinks + window)


def empty_ring(
  batch: int, heads: int, num_slots: int, key_dim: int, value_dim: int, dtype: jnp.dtype, *, layers: int | None = None,
) -> Ring:
  """A ring without tokens; with `layers`, a stack of them."""
  shape = (() if layers is None else (layers,)) + (batch, heads, num_slots)
  return Ring(jnp.zeros((*shape, key_dim), dtype), jnp.zeros((*shape, value_dim), dtype))


def slot_of(index: jax.Array, *, sinks: int, window: int) -> jax.Array:
  """The slot of a token by its index in its document."""
  return index if window == ALL else jnp.where(index < sinks, index, sinks + (index - sinks) % window)


def held(seen_B: jax.Array, num_slots: int, *, sinks: int, window: int) -> jax.Array:
  """[B, S]: the index of the token in each slot after `seen_B` tokens, EMPTY for none."""
  slot_S, seen_B1 = jnp.arange(num_slots, dtype=jnp.int32), seen_B[:, None]
  index_BS = slot_S
  if window != ALL:
    turns_BS = jnp.where(slot_S < sinks, 0, (seen_B1 - 1 - slot_S) // window)
    index_BS = slot_S + turns_BS * window
  return jnp.where(slot_S < seen_B1, index_BS, EMPTY)


def read_ring(
  ring: Ring, place: jax.Array, q_BTQK: jax.Array, before: tuple[jax.Array, jax.Array], seen_B: jax.Array,
  readers: Readers, *, sinks: int, window: int, impl: str,
) -> tuple[jax.Array, jax.Array]:
  """`before`, attention to other tokens as (output, log-sum-exp), merged with attention to layer `place` of a stack."""
  position_BS = held(seen_B, ring.num_slots, sinks=sinks, window=window)
  slots = StackedSlots(
    key_LBHSK=ring.key_BHSK, value_LBHSV=ring.value_BHSV, position_LBHS=position_BS[None, :, None], layer=place,
    length_B=jnp.minimum(seen_B, ring.num_slots))
  rule = None if window == ALL else SinksAndWindow(sinks, window)
  return attend_slots(q_BTQK, slots, readers, before, rule=rule, impl=impl)


def write_ring(
  ring: Ring, place: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, index_BT: jax.Array, is_kept_BT: jax.Array,
  seen_B: jax.Array, *, sinks: int, window: int,
) -> Ring:
  """The stack with those tokens in layer `place`, written in place.

  is_kept_BT: tokens of the document that stays; the oldest of them may have left already after `seen_B` tokens.
  """
  if window != ALL:
    is_kept_BT &= (index_BT < sinks) | (index_BT >= seen_B[:, None] - window)
  slot_BT = jnp.where(is_kept_BT, slot_of(index_BT, sinks=sinks, window=window), ring.num_slots)
  row_B1 = jnp.arange(len(slot_BT))[:, None]

  def write(x_LBHS: jax.Array, new_BTH: jax.Array) -> jax.Array:
    return x_LBHS.at[place, row_B1, :, slot_BT].set(new_BTH.astype(x_LBHS.dtype), mode="drop")

  return Ring(write(ring.key_BHSK, k_BTHK), write(ring.value_BHSV, v_BTHV))


def leaving(
  ring: Ring, place: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, index_BT: jax.Array, is_token_BT: jax.Array, *,
  sinks: int, window: int,
) -> Leaving:
  """The tokens that leave the window of layer `place` of a stack as those of a call arrive, one after another.

  They are in the ring, as it was before the call, or came earlier in the call.
  """
  if window == ALL:
    return no_one_leaves(k_BTHK.astype(ring.key_BHSK.dtype), v_BTHV.astype(ring.value_BHSV.dtype))
  length, position_BT = k_BTHK.shape[1], index_BT - window
  from_ring = min(length, window) if ring.num_slots else 0
  slot_BT = slot_of(position_BT[:, :from_ring], sinks=sinks, window=window)
  row_B1 = jnp.arange(len(slot_BT))[:, None]

  def found(x_LBHS: jax.Array, new_BTH: jax.Array) -> jax.Array:
    new_BTH = jnp.pad(new_BTH, ((0, 0), (min(length, window), 0), (0, 0), (0, 0)))[:, :length].astype(x_LBHS.dtype)
    old_BTH = x_LBHS.at[place, row_B1, :, slot_BT].get(mode="clip") if from_ring else new_BTH[:, :0]
    return jnp.concatenate([old_BTH, new_BTH[:, from_ring:]], axis=1)

  return leaving_of(
    found(ring.key_BHSK, k_BTHK), found(ring.value_BHSV, v_BTHV), position_BT, is_token_BT & (position_BT >= sinks))


def score_leaving_ring(
  ring: Ring, place: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, index_BT: jax.Array, is_token_BT: jax.Array,
  partition_BCH: jax.Array, *, sinks: int, window: int,
) -> Scores:
  """Scores of the tokens that `leaving` finds; the partitions that are scored are in the ring or in the call."""
  if window == ALL:
    return Scores(jnp.zeros(k_BTHK.shape[:3], partition_BCH.dtype), partition_BCH)

  def fetch(time_BN: jax.Array, index_BNM: jax.Array) -> tuple[jax.Array, jax.Array]:
    row_B11 = jnp.arange(len(index_BNM))[:, None, None]
    # counted from the call's first token; those before it are in the ring
    time_BNM = time_BN[..., None] - window + jnp.arange(index_BNM.shape[2])
    slot_BNM = slot_of(index_BNM, sinks=sinks, window=window)

    def found(x_LBHS: jax.Array, new_BTH: jax.Array) -> jax.Array:
      new_BNMH = new_BTH.astype(x_LBHS.dtype).at[row_B11, time_BNM].get(mode="clip")
      if not ring.num_slots:
        return new_BNMH
      old_BNMH = x_LBHS.at[place, row_B11, :, slot_BNM].get(mode="clip")
      return jnp.where((time_BNM < 0)[..., None, None], old_BNMH, new_BNMH)

    return found(ring.key_BHSK, k_BTHK), found(ring.value_BHSV, v_BTHV)

  position_BT = index_BT - window
  leaves_BT = (position_BT >= sinks) & is_token_BT
  return score_leaving(fetch, position_BT, leaves_BT, is_token_BT, partition_BCH, sinks=sinks)


def blank_unused(ring: Ring, seen_B: jax.Array) -> Ring:
  """A stack with zeros in the slots that hold no token after `seen_B` tokens."""
  is_used_B1S1 = (jnp.arange(ring.num_slots) < seen_B[:, None])[:, None, :, None]
  return jax.tree.map(lambda x_LBHS: jnp.where(is_used_B1S1, x_LBHS, 0), ring)
