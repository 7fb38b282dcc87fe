"""Where copies of layers lie: on a CPU in memory that is refilled in place, elsewhere as arrays of the device.

Both give arrays in the memory that programs read from, and count it in the pool. A slot holds one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Sharding

from lattice_jax.inference.streaming.budget import Pool
from lattice_jax.inference.streaming.layers import LayerParts, fresh_memory, views
from lattice_jax.ops.packed_weight import PackedWeight, packed_leaves

PINNED_HOST = "pinned_host"
Read = Callable[[LayerParts, list[np.ndarray]], None]


@runtime_checkable
class Computed(Protocol):
  """An array of JAX, as far as it matters here: what can be waited for."""

  def block_until_ready(self) -> Any: ...


@dataclass(eq=False)
class Slot:
  """Room for one layer. held: its parameters. until: an array that is ready once no program reads them any more.

  memory: of the host, where the slot is refilled in place; outs: the arrays of NumPy in it; form: `LayerParts.form` of
  both. packed: those of the parameters, or of `outs`, that must be taken apart. is_old: whether an earlier pass has
  read it too.
  """

  nbytes: int
  memory: np.ndarray | None = None
  outs: list[np.ndarray] | None = None
  form: Any = None
  held: Any = None
  packed: list[PackedWeight] = field(default_factory=list)
  until: Computed | None = None
  is_old: bool = False

  def wait(self) -> None:
    if self.until is not None:
      self.until.block_until_ready()
      self.until = None


@runtime_checkable
class Tier(Protocol):
  """fill: waits until the slot is free; then it holds the layer. again: whether it will be filled with it again."""

  def make_slot(self, num_bytes: int, what: str) -> Slot: ...

  def fill(self, slot: Slot, layer: LayerParts, read: Read, *, again: bool) -> None: ...


class HostTier:
  """The CPU's: JAX takes the memory of a slot over as it is, so a slot is filled by copying into that.

  JAX holds arrays to be constant. These are not, and nothing sees it: a slot is filled only when no program that reads
  it is running, and its arrays are given to no program before the next fill has ended.
  """

  def __init__(self, pool: Pool, sharding: Sharding):
    self._pool, self._sharding = pool, sharding

  def make_slot(self, num_bytes: int, what: str) -> Slot:
    self._pool.take(num_bytes, what)
    return Slot(num_bytes, memory=fresh_memory(num_bytes))

  def fill(self, slot: Slot, layer: LayerParts, read: Read, *, again: bool) -> None:
    del again
    slot.wait()
    if slot.form != layer.form:
      # once for all layers that are alike: it takes as long as reading a small one
      slot.form, slot.outs = layer.form, views(layer, slot.memory)
      tree = jax.tree.unflatten(jax.tree.structure(layer.tree), slot.outs)
      slot.held, slot.packed = adopt(tree, self._sharding), packed_leaves(tree)
    read(layer, slot.outs)


def adopt(tree: Any, sharding: Sharding) -> Any:
  """Arrays of NumPy as JAX's, in the same memory. Raises ValueError if that cannot be."""
  arrays = jax.device_put(tree, sharding)
  for array, out in zip(jax.tree.leaves(arrays), jax.tree.leaves(tree), strict=True):
    if array.unsafe_buffer_pointer() != out.ctypes.data:
      raise ValueError(
        "this version of JAX copies memory that it used to take over, so that nothing can be streamed on the CPU; use "
        "the version in requirements.txt, or leave the budget out.")
  return arrays


class DeviceTier:
  """An accelerator's: the host holds what was read once, pinned where the backend can, and copies it at each pass.

  A slot's arrays are deleted before those that follow are allocated.
  """

  def __init__(self, pool: Pool, sharding: Sharding):
    self._pool, self._sharding = pool, sharding
    self._host_sharding = host_sharding(sharding)
    self._on_host: dict[str, Any] = {}

  @property
  def host_bytes(self) -> int:
    return sum(leaf.nbytes for tree in self._on_host.values() for leaf in jax.tree.leaves(tree))

  def make_slot(self, num_bytes: int, what: str) -> Slot:
    self._pool.take(num_bytes, what)
    return Slot(num_bytes)

  def fill(self, slot: Slot, layer: LayerParts, read: Read, *, again: bool) -> None:
    slot.wait()
    tree = self._on_host[layer.name] if layer.name in self._on_host else self._read(layer, read)
    if again:
      self._on_host[layer.name] = tree
    for leaf in jax.tree.leaves(slot.held):
      leaf.delete()
    slot.held = jax.block_until_ready(jax.device_put(tree, self._sharding, may_alias=False))
    slot.packed = packed_leaves(slot.held)

  def _read(self, layer: LayerParts, read: Read) -> Any:
    outs = views(layer, fresh_memory(layer.nbytes))
    read(layer, outs)
    tree = jax.tree.unflatten(jax.tree.structure(layer.tree), outs)
    return tree if self._host_sharding is None else jax.block_until_ready(jax.device_put(tree, self._host_sharding))


def host_sharding(sharding: Sharding) -> Sharding | None:
  """The same devices' pinned memory of the host; None where a backend has none."""
  (device, *_) = sharding.device_set
  if PINNED_HOST not in {memory.kind for memory in device.addressable_memories()}:
    return None
  return sharding.with_memory_kind(PINNED_HOST)


def make_tier(pool: Pool, sharding: Sharding) -> Tier:
  """The tier of the backend whose devices `sharding` names."""
  (device, *_) = sharding.device_set
  return HostTier(pool, sharding) if device.platform == "cpu" else DeviceTier(pool, sharding)
