"""Heads of Lattice on the 128 lanes of a TPU's vector unit.

A row is one head of one sequence. Lane p·R + r of a group holds part p of row r: values are cut into P parts so that
R·P = 128, and what is summed over values is then summed over parts by rolling lanes. Slots lie on sublanes and values
on the major axis, so every reduction is a sum of whole registers, one over sublanes, or log₂ P rolls; with 128 rows
no lane is idle, however narrow a head is. Everything that fills up is zero and changes nothing.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from pallas_kernels.tiles import LANES, pad_to, round_up

# Of one group's slots in fp32: forward programs hold them five times, backward ones once a token of a chunk.
STATE_BYTES = 2 << 20
REPLAY_BYTES = 32 << 20
PROGRAM_BYTES = 63 << 20  # of a v5p's 64 MiB; other cores have more
OTHER_BYTES = 2 << 20  # gates, and what the compiler keeps
SHORTEST_CHUNK, LONGEST_CHUNK = 8, 64


@dataclasses.dataclass(frozen=True)
class SlotLayout:
  """How heads lie on lanes. rows: of a group. groups: number of groups. parts: into which the values of a row are cut.

  slots, values: after padding, `values` those of one part. chunk: tokens that a program takes and between two saved
  states. chunks: number of chunks.
  """

  rows: int
  groups: int
  parts: int
  slots: int
  values: int
  chunk: int
  chunks: int

  @property
  def state_bytes(self) -> int:
    return self.values * self.slots * LANES * 4

  def forward_bytes(self) -> int:
    """At most what a forward program takes of VMEM; blocks that change with the chunk are there twice."""
    return 6 * self.state_bytes + self._tile_bytes(codes=4, values=4) + OTHER_BYTES

  def backward_bytes(self, *, returns: bool = True) -> int:
    """The same of a backward program."""
    return (7 + self.chunk) * self.state_bytes + self._tile_bytes(codes=9 + returns, values=7) + OTHER_BYTES

  def _tile_bytes(self, *, codes: int, values: int) -> int:
    """Of so many arrays of a chunk's codes and values."""
    return self.chunk * (codes * self.slots + values * self.values) * LANES * 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
  """Packed tokens, or a program's references to a chunk of them. any_start: whether a document begins in any lane.

  gates: (rate,) of retracted slots; (step, rest) of returning ones, rest being the share they get of their start.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  gates: tuple[jax.Array, ...]
  is_start: jax.Array
  any_start: jax.Array

  @property
  def returns(self) -> bool:
    return len(self.gates) == 2


def choose_layout(batch: int, length: int, heads: int, slots: int, value_dim: int) -> SlotLayout:
  """As many rows a group as there are, and as `STATE_BYTES` leave room for, at least eight; then the longest chunk."""
  num_rows, slots = batch * heads, round_up(slots, 16)
  rows = min(LANES, max(8, 1 << (num_rows - 1).bit_length()))
  while rows > 8 and slots * value_dim * rows * 4 > STATE_BYTES:
    rows //= 2
  parts = LANES // rows
  values = math.ceil(value_dim / parts)
  groups = math.ceil(num_rows / rows)

  def with_chunk(chunk: int) -> SlotLayout:
    return SlotLayout(rows, groups, parts, slots, values, chunk, math.ceil(length / chunk))

  chunk = LONGEST_CHUNK
  while chunk > SHORTEST_CHUNK and (
    chunk * values * slots * LANES * 4 > REPLAY_BYTES or with_chunk(chunk).backward_bytes() > PROGRAM_BYTES):
    chunk //= 2
  return with_chunk(min(chunk, round_up(length, SHORTEST_CHUNK)))


def pack_codes(layout: SlotLayout, x_BTHM: jax.Array) -> jax.Array:
  """[B, T, H, M] → [groups, T, M, lanes], the same in every part."""
  x_RTM = pad_to(_by_row(x_BTHM), {1: layout.chunk * layout.chunks, 2: layout.slots})
  return jnp.tile(_lanes_last(layout, x_RTM), (1, 1, 1, layout.parts))


def pack_values(layout: SlotLayout, x_BTHV: jax.Array) -> jax.Array:
  """[B, T, H, V] → [groups, T, V / parts, lanes]."""
  x_RTV = pad_to(_by_row(x_BTHV), {1: layout.chunk * layout.chunks, 2: layout.parts * layout.values})
  x_GTVR = _lanes_last(layout, x_RTV)
  parted = x_GTVR.reshape(*x_GTVR.shape[:2], layout.parts, layout.values, layout.rows)
  return jnp.swapaxes(parted, 2, 3).reshape(*x_GTVR.shape[:2], layout.values, LANES)


def unpack_values(layout: SlotLayout, x_GTVL: jax.Array, shape_BTHV: tuple[int, ...]) -> jax.Array:
  """Back to [B, T, H, V]."""
  batch, length, heads, value_dim = shape_BTHV
  parted = x_GTVL.reshape(*x_GTVL.shape[:3], layout.parts, layout.rows)
  x_GRTPV = jnp.transpose(parted, (0, 4, 1, 3, 2))
  x_RTV = x_GRTPV.reshape(layout.groups * layout.rows, -1, layout.parts * layout.values)
  x_BHTV = x_RTV[:batch * heads, :length, :value_dim].reshape(batch, heads, length, value_dim)
  return jnp.swapaxes(x_BHTV, 1, 2)


def pack_gates(layout: SlotLayout, x_BTH: jax.Array) -> jax.Array:
  """[B, T, H] → [groups, T, lanes], the same in every part."""
  x_RT = pad_to(_by_row(x_BTH), {1: layout.chunk * layout.chunks})
  return jnp.tile(_lanes_last(layout, x_RT[..., None])[:, :, 0], (1, 1, layout.parts))


def pack_state(layout: SlotLayout, x_BHMV: jax.Array) -> jax.Array:
  """[B, H, M, V] → [groups, V / parts, M, lanes]."""
  x_RMV = x_BHMV.reshape(-1, *x_BHMV.shape[2:])
  x_RMV = pad_to(x_RMV, {0: layout.groups * layout.rows, 1: layout.slots, 2: layout.parts * layout.values})
  parted = x_RMV.reshape(layout.groups, layout.rows, layout.slots, layout.parts, layout.values)
  return jnp.transpose(parted, (0, 4, 2, 3, 1)).reshape(layout.groups, layout.values, layout.slots, LANES)


def unpack_state(layout: SlotLayout, x_GVML: jax.Array, shape_BHMV: tuple[int, ...]) -> jax.Array:
  """Back to [B, H, M, V]."""
  batch, heads, slots, value_dim = shape_BHMV
  parted = x_GVML.reshape(*x_GVML.shape[:3], layout.parts, layout.rows)
  x_GRMPV = jnp.transpose(parted, (0, 4, 2, 3, 1))
  x_RMV = x_GRMPV.reshape(layout.groups * layout.rows, layout.slots, layout.parts * layout.values)
  return x_RMV[:batch * heads, :slots, :value_dim].reshape(shape_BHMV)


def _by_row(x_BTH: jax.Array) -> jax.Array:
  """[B, T, H, …] → [B·H, T, …]."""
  x_BHT = jnp.swapaxes(x_BTH, 1, 2)
  return x_BHT.reshape(-1, *x_BHT.shape[2:])


def _lanes_last(layout: SlotLayout, x_RTK: jax.Array) -> jax.Array:
  """[rows, T, K] → [groups, T, K, rows of a group]."""
  x_RTK = pad_to(x_RTK, {0: layout.groups * layout.rows})
  x_GRTK = x_RTK.reshape(layout.groups, layout.rows, *x_RTK.shape[1:])
  return jnp.moveaxis(x_GRTK, 1, 3)
