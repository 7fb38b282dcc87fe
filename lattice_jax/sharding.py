"""Which device holds which data: the mesh, and the shardings of parameters, optimizer, memory and batches.

Mesh axes are "data" (rows of the batch; with `fsdp` also the `embed` axis of parameters) and "model". Everything runs
under `jax.jit` with Auto axes: a sharding says where an array lives, never what is computed.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lattice_jax.config import Config, MeshConfig

MEMORY_AXES = {"B": "data", "H": "model"}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
  """The `data` × `model` mesh over all devices, or over the given ones."""
  devices = jax.devices() if devices is None else devices
  if len(devices) % config.model or config.data == 0 or config.data < -1:
    raise ValueError(
      f"mesh.data={config.data} and mesh.model={config.model} do not fit {len(devices)} devices; "
      "mesh.model must divide their number, and mesh.data=-1 takes the rest.")
  data = len(devices) // config.model if config.data == -1 else config.data
  if data * config.model != len(devices):
    raise ValueError(
      f"mesh.data={data} × mesh.model={config.model} is not the number of devices, {len(devices)}; "
      f"use mesh.data=-1, or {len(devices) // config.model}.")
  return jax.make_mesh((data, config.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_batch(config: Config, mesh: Mesh) -> None:
  """Every slice of the `data` axis, and every process, must get the same number of rows of each micro-batch."""
  rows, data = config.data.batch // config.train.accumulate, mesh.shape["data"]
  if rows % data or rows % jax.process_count():
    unit = math.lcm(data, jax.process_count()) * config.train.accumulate
    fitting = max(unit, config.data.batch // unit * unit)
    raise ValueError(
      f"data.batch={config.data.batch} in train.accumulate={config.train.accumulate} micro-batches is not divisible by "
      f"the {data} devices of the mesh's data axis; use a multiple of {unit}, such as data.batch={fitting}.")


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over the `data` axis."""
  return NamedSharding(mesh, PartitionSpec("data"))


def param_shardings(boxed: Any, mesh: Mesh, config: MeshConfig) -> Any:
  """Shardings of a tree of boxed arrays (or their shapes): parameters, buffers, or optimizer state made from them.

  The result has the structure of the unboxed arrays. Leaves without a box are replicated. A mesh axis that does not
  divide its dimension, or that the array already uses, is dropped for that array.
  """
  rules = dict(config.rules) | ({"embed": "data"} if config.fsdp else {})
  for logical, axis in rules.items():
    if axis not in mesh.shape:
      raise ValueError(f"mesh.rules sends {logical!r} to {axis!r}; the mesh has the axes {', '.join(mesh.shape)}.")

  def leaf_sharding(leaf: Any) -> NamedSharding:
    if not is_box(leaf):
      return replicated(mesh)
    wanted = [rules[name] if name in rules else None for name in leaf.names]
    return NamedSharding(mesh, _fitting_spec(wanted, leaf.value.shape, mesh))

  return jax.tree.map(leaf_sharding, boxed, is_leaf=is_box)


def is_box(leaf: Any) -> bool:
  """Whether an array carries the names of its logical axes."""
  return isinstance(leaf, nn.Partitioned)


def unbox(tree: Any) -> Any:
  """The bare arrays; unlike `nn.unbox`, this adds no sharding constraints from a context."""
  return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, tree, is_leaf=is_box)


def state_shardings(state: Any, mesh: Mesh) -> Any:
  """Shardings of a memory state, from the shape suffix of each field's name: B → data, H → model."""
  def leaf_sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    wanted = [MEMORY_AXES[letter] if letter in MEMORY_AXES else None for letter in shape_letters(path, leaf)]
    return NamedSharding(mesh, _fitting_spec(wanted, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(leaf_sharding, state)


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

  Arrays of at least two axes have rows first (second where `stacked`); other arrays are the same on every process.
  """
  lead = int(stacked)

  def put(local: np.ndarray) -> jax.Array:
    if local.ndim <= lead:
      return jax.device_put(local, replicated(mesh))
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * lead, "data"))
    shape = (*local.shape[:lead], rows, *local.shape[lead + 1:])
    return jax.make_array_from_process_local_data(sharding, local, shape)

  return jax.tree.map(put, batch)


def tree_bytes(tree: Any) -> int:
  """The bytes of all arrays, each counted once however it is sharded."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _fitting_spec(wanted: list[str | None], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  spec: list[str | None] = []
  for axis, size in zip(wanted, shape, strict=True):
    fits = axis is not None and axis not in spec and size % mesh.shape[axis] == 0
    spec.append(axis if fits else None)
  return PartitionSpec(*spec)


def _is_name(key: Any) -> bool:
  return hasattr(key, "key") and isinstance(key.key, str)
