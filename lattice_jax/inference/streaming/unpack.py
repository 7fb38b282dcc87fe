"""Two codes a byte become one a byte, layer by layer, just before a layer is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Sharding

from lattice_jax.inference.streaming.budget import Pool
from lattice_jax.inference.streaming.layers import LayerParts, aligned, fresh_memory, whole_pages
from lattice_jax.inference.streaming.tiers import Computed, HostTier, Slot, Tier, adopt
from lattice_jax.ops.packed_weight import PackedWeight, packed_leaves, unpack_codes, with_codes

_AREAS = 2  # one is filled while the layer before is computed out of the other
_SCRATCH = 1 << 18


@runtime_checkable
class Unpacker(Protocol):
  """Makes a slot's layer what programs read; `reads_until` says when they have read the last one."""

  def unpack(self, slot: Slot) -> Any: ...

  def reads_until(self, done: Computed) -> None: ...


def code_bytes(layers: Sequence[LayerParts]) -> int:
  """Memory that codes of a byte each need beside the layers; 0 where no layer has two in a byte."""
  most = max(sum(aligned(2 * leaf.pair_NJ.nbytes) for leaf in packed_leaves(layer.tree)) for layer in layers)
  return _AREAS * whole_pages(most) + _SCRATCH if most else 0


def make_unpacker(tier: Tier, pool: Pool, num_bytes: int, sharding: Sharding) -> Unpacker:
  """The tier's own way; num_bytes: as `code_bytes`, taken from the pool."""
  pool.take(num_bytes, "codes taken apart")
  return HostUnpacker(num_bytes, sharding) if isinstance(tier, HostTier) else DeviceUnpacker()


class HostUnpacker:
  """With NumPy in the calling thread, into memory that is refilled as that of a `HostTier`: XLA's loops take longer."""

  def __init__(self, num_bytes: int, sharding: Sharding):
    self._sharding, self._num = sharding, 0
    size = (num_bytes - _SCRATCH) // _AREAS
    self._areas = [Slot(size, memory=fresh_memory(size)) for _ in range(_AREAS)] if num_bytes else []
    self._scratch = fresh_memory(_SCRATCH) if num_bytes else None

  def unpack(self, slot: Slot) -> Any:
    if not slot.packed:
      return slot.held
    self._num += 1
    area = self._areas[self._num % _AREAS]
    area.wait()
    if area.form != slot.form:
      area.form, area.outs = slot.form, self._codes(area, slot.packed)
      area.held = adopt(area.outs, self._sharding)
    for leaf, code_NK in zip(slot.packed, area.outs, strict=True):
      unpack_codes(leaf.pair_NJ, code_NK, self._scratch, zero=leaf.zero)
    return with_codes(slot.held, area.held)

  def _codes(self, area: Slot, packed: list[PackedWeight]) -> list[np.ndarray]:
    """Views of the area, each for the codes of a matrix."""
    outs, place = [], 0
    for leaf in packed:
      num_rows, num_bytes = leaf.pair_NJ.shape
      out = area.memory[place:place + 2 * leaf.pair_NJ.size].view(np.int8)
      outs.append(out.reshape(num_rows, 2 * num_bytes))
      place += aligned(out.size)
    return outs

  def reads_until(self, done: Computed) -> None:
    # a layer that was not taken apart only makes an area wait longer than it must
    if self._areas:
      self._areas[self._num % _AREAS].until = done


class DeviceUnpacker:
  """With a compiled program, into arrays of the device."""

  def unpack(self, slot: Slot) -> Any:
    return with_codes(slot.held, _take_apart(slot.packed)) if slot.packed else slot.held

  def reads_until(self, done: Computed) -> None:
    """Nothing: the device frees codes once they have been read."""


@jax.jit
def _take_apart(packed: list[PackedWeight]) -> list[jax.Array]:
  return [leaf.codes() for leaf in packed]


def unpacked_shapes(tree: Any) -> Any:
  """Of parameters as `unpack` returns them, from those that a slot holds."""
  def codes(leaf: PackedWeight) -> jax.ShapeDtypeStruct:
    shape = jax.eval_shape(PackedWeight.codes, leaf)
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=leaf.pair_NJ.sharding)

  return with_codes(tree, [codes(leaf) for leaf in packed_leaves(tree)])

