"""Which device holds which data: the mesh, and the shardings of parameters, optimizer, memory and batches.

Mesh axes are "data" (rows of the batch; with `fsdp` also the `embed` axis of parameters), "seq" (tokens of a row) and
"model". Everything runs under `jax.jit` with Auto axes: a sharding says where an array lives, never what is computed;
but where tokens depend on one another, `lattice_jax.ops.sequence` says what goes from device to device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lattice_jax.config import Config, MeshConfig
from lattice_jax.ops.sequence import AXIS

AXES = ("data", AXIS, "model")
MEMORY_AXES = {"B": "data", "H": "model"}


@dataclass(frozen=True)
class Axes:
  """An array's axes: what each is called, and the mesh axis over which it should be split; None for neither."""

  names: tuple[str | None, ...]
  wanted: tuple[str | None, ...]

  def fitting(self, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """What is wanted, without mesh axes that do not divide the array's, or that another of its axes has."""
    spec: list[str | None] = []
    for axis, size in zip(self.wanted, shape, strict=True):
      fits = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
      spec.append(axis if fits else None)
    return PartitionSpec(*spec)

  def undivided(self, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> list[int]:
    """The numbers of the axes that are whole on each device only because a mesh axis does not divide them."""
    spec = self.fitting(shape, mesh)
    return [number for number, axis in enumerate(self.wanted) if axis is not None and axis not in spec]


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """The `data` × `seq` × `model` mesh over all devices, or over the given ones.

  Slices of `data` are sorted by process, because a process reads rows that follow one another.
  """
  devices = jax.devices() if devices is None else devices
  placed = placed_devices(mesh_sizes(config, len(devices)), devices)
  order = sorted_by_process([[device.process_index for device in row.flat] for row in placed])
  return Mesh(placed[order], AXES, axis_types=(AxisType.Auto,) * 3)


def placed_devices(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
  """`jax.Device`s so that neighbours in the mesh are neighbours in the machine.

  On a torus the way from one to the next may leave a host and come back. Where they are of several slices (of TPUs, or
  machines with GPUs, whose links inside are faster than those between), the outermost axes that can go between slices
  do. Slices of GPUs that differ in size are taken in the devices' order.
  """
  slices = Counter(getattr(device, "slice_index", 0) for device in devices)
  if len(slices) == 1:
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  if len(set(slices.values())) > 1:
    return np.array(sorted(devices, key=lambda device: device.id)).reshape(sizes)
  between, left = [], len(slices)
  for size in sizes:
    between.append(math.gcd(size, left))
    left //= between[-1]
  inside = [size // number for size, number in zip(sizes, between, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def sorted_by_process(process_DN: list[list[int]]) -> list[int]:
  """Places on the `data` axis, those that hold the same processes' devices one after another, else in their order."""
  first: dict[tuple[int, ...], int] = {}
  for place, processes in enumerate(process_DN):
    first.setdefault(tuple(sorted(set(processes))), place)
  return sorted(range(len(process_DN)), key=lambda place: (first[tuple(sorted(set(process_DN[place])))], place))


def _processes(mesh: Mesh) -> list[list[int]]:
  """Those of the devices that hold each slice of the `data` axis."""
  return [[device.process_index for device in row.flat] for row in mesh.devices]


def mesh_sizes(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
  """(data, seq, model) of a mesh over so many devices. Raises ValueError if they do not multiply to their number."""
  of_row = config.seq * config.model
  if num_devices % of_row or config.data == 0 or config.data < -1:
    raise ValueError(
      f"mesh.data={config.data}, mesh.seq={config.seq} and mesh.model={config.model} do not fit {num_devices} "
      "devices; mesh.seq × mesh.model must divide their number, and mesh.data=-1 takes the rest.")
  data = num_devices // of_row if config.data == -1 else config.data
  if data * of_row != num_devices:
    raise ValueError(
      f"mesh.data={data} × mesh.seq={config.seq} × mesh.model={config.model} is not the number of devices, "
      f"{num_devices}; use mesh.data=-1, or {num_devices // of_row}.")
  return data, config.seq, config.model


def reader_of(mesh: Mesh) -> tuple[int, int]:
  """(number of this process among those that read other rows, how many these are).

  Processes whose devices hold tokens of the same rows read the same rows.

  Raises:
    ValueError: they hold some of the same rows, and some others.
  """
  return reader_among(_processes(mesh), jax.process_index())


def reader_among(process_DN: list[list[int]], process: int) -> tuple[int, int]:
  """`reader_of` one process, given those of the devices that hold each slice of the `data` axis."""
  slices: dict[int, list[int]] = {}
  for place, processes in enumerate(process_DN):
    for number in dict.fromkeys(processes):
      slices.setdefault(number, []).append(place)
  groups = sorted({tuple(places) for places in slices.values()})
  size = len(groups[0])
  if [place for group in groups for place in group] != list(range(size * len(groups))):
    raise ValueError(
      f"mesh.data={len(process_DN)} gives processes some rows in common and others apart; use a mesh.seq × mesh.model "
      "that divides the devices of a process, or is a multiple of them.")
  return groups.index(tuple(slices[process])), len(groups)


def check_batch(config: Config, mesh: Mesh) -> None:
  """Every slice of the `data` axis, and every reader, must get the same number of rows of each micro-batch."""
  check_rows(config, data=mesh.shape["data"], readers=reader_of(mesh)[1])


def check_rows(config: Config, *, data: int, readers: int = 1) -> None:
  """As `check_batch`, of a mesh whose `data` axis is so long, and whose rows so many processes read."""
  rows = config.data.batch // config.train.accumulate
  if rows % data or rows % readers:
    unit = math.lcm(data, readers) * config.train.accumulate
    fitting = max(unit, config.data.batch // unit * unit)
    raise ValueError(
      f"data.batch={config.data.batch} in train.accumulate={config.train.accumulate} micro-batches is not divisible by "
      f"the {data} devices of the mesh's data axis; use a multiple of {unit}, such as data.batch={fitting}.")


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Rows over the `data` axis, tokens over `seq`."""
  return NamedSharding(mesh, PartitionSpec("data", AXIS))


def param_shardings(boxed: Any, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Any:
  """Shardings of a tree of boxed arrays (or their shapes): parameters, buffers, or optimizer state made from them.

  The result has the structure of the unboxed arrays. Leaves without a box are replicated. A mesh axis that does not
  divide its dimension, or that the array already uses, is dropped for that array.
  """
  return _apply(param_axes(boxed, mesh, config), unbox(boxed), mesh)


def param_axes(boxed: Any, mesh: Mesh | AbstractMesh, config: MeshConfig) -> Any:
  """The `Axes` of each array by `mesh.rules`, in a tree of the structure of the unboxed arrays."""
  rules = dict(config.rules) | ({"embed": "data"} if config.fsdp else {})
  for logical, axis in rules.items():
    if axis not in mesh.shape:
      raise ValueError(f"mesh.rules sends {logical!r} to {axis!r}; the mesh has the axes {', '.join(mesh.shape)}.")

  def leaf_axes(leaf: Any) -> Axes:
    names = leaf.names if is_box(leaf) else (None,) * leaf.ndim
    return Axes(names, tuple(rules[name] if name in rules else None for name in names))

  return jax.tree.map(leaf_axes, boxed, is_leaf=is_box)


def is_box(leaf: Any) -> bool:
  """Whether an array carries the names of its logical axes."""
  return isinstance(leaf, nn.Partitioned)


def unbox(tree: Any) -> Any:
  """The bare arrays; unlike `nn.unbox`, this adds no sharding constraints from a context."""
  return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, tree, is_leaf=is_box)


def state_shardings(state: Any, mesh: Mesh | AbstractMesh) -> Any:
  """Shardings of a memory state, from the shape suffix of each field's name: B → data, H → model."""
  return _apply(memory_axes(state), state, mesh)


def memory_axes(state: Any) -> Any:
  """The `Axes` of each field of a memory state."""
  def leaf_axes(path: tuple[Any, ...], leaf: Any) -> Axes:
    letters = tuple(shape_letters(path, leaf))
    return Axes(letters, tuple(MEMORY_AXES[letter] if letter in MEMORY_AXES else None for letter in letters))

  return jax.tree_util.tree_map_with_path(leaf_axes, state)


def shape_letters(path: tuple[Any, ...], leaf: Any) -> str:
  """The letter of each axis, from the field's name: `mean_BHMV` → BHMV, or LBHMV where layers are stacked in front."""
  names = [str(key.name if hasattr(key, "name") else key.key) for key in path if hasattr(key, "name") or _is_name(key)]
  suffix = names[-1].rpartition("_")[2] if names else ""
  if not (suffix.isalpha() and suffix.isupper()) or not 0 <= leaf.ndim - len(suffix) <= 1:
    raise ValueError(
      f"the state field {jax.tree_util.keystr(path)} of shape {leaf.shape} must end in one letter for each axis, "
      "such as count_BHM, with at most one axis of stacked layers in front.")
  return "L" * (leaf.ndim - len(suffix)) + suffix


def put_batch(batch: Any, mesh: Mesh, *, rows: int, stacked: bool = False) -> Any:
  """Device arrays made from this process's part of a batch; `rows` counts the rows of all processes.

  Arrays of at least two axes have rows first (second where `stacked`), then tokens, all of them; other arrays are the
  same on every process.
  """
  lead = int(stacked)

  def put(local: np.ndarray) -> jax.Array:
    if local.ndim <= lead:
      # not device_put: to compare the processes' arrays it sends one around, behind what the devices are computing
      return jax.make_array_from_process_local_data(replicated(mesh), local, local.shape)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * lead, *("data", AXIS)[:local.ndim - lead]))
    shape = (*local.shape[:lead], rows, *local.shape[lead + 1:])
    return jax.make_array_from_process_local_data(sharding, local, shape)

  return jax.tree.map(put, batch)


def tree_bytes(tree: Any) -> int:
  """The bytes of all arrays, each counted once however it is sharded."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _apply(axes: Any, tree: Any, mesh: Mesh | AbstractMesh) -> Any:
  return jax.tree.map(lambda axes, leaf: NamedSharding(mesh, axes.fitting(leaf.shape, mesh)), axes, tree)


def _is_name(key: Any) -> bool:
  return hasattr(key, "key") and isinstance(key.key, str)
