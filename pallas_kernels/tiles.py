"""What TPU kernels that work on tiles of tokens share: padding, turning rows into columns, sliding, the launch."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

LANES = 128
SUBLANES = 8
MASKED = -1e30
# What a kernel may take of the vector memory of every target: 64 MiB on the smallest, less room for the compiler.
VMEM_BUDGET = 48 << 20
_VMEM_LEAST, _VMEM_MOST = 16 << 20, 60 << 20

# name → (array or its shape, block, index map); a None in a block is an axis of size one that the kernel does not see.
Operands = dict[str, tuple[jax.Array | jax.ShapeDtypeStruct, tuple[int | None, ...], Callable]]


def round_up(size: int, unit: int) -> int:
  """The least multiple of `unit` that is not below `size`."""
  return -(-size // unit) * unit


def pad_to(x: jax.Array, sizes: dict[int, int], value: float = 0) -> jax.Array:
  """Pads the end of each axis named to the size given."""
  return jnp.pad(x, [(0, sizes[axis] - size if axis in sizes else 0) for axis, size in enumerate(x.shape)],
                 constant_values=value)


def eight_rows(*rows: jax.Array) -> jax.Array:
  """[…, T] each → […, 8, T], a register's sublanes; unused ones are zero."""
  empty = jnp.zeros_like(rows[0])
  return jnp.stack([*rows, *[empty] * (SUBLANES - len(rows))], axis=-2)


def dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
  """Product of two matrices over one axis of each, summed in fp32."""
  return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def dot_fp32(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
  """As `dot`, of fp32 matrices whose numbers are not rounded to bf16 on the way."""
  return jax.lax.dot_general(
    a, b, (((a_axis,), (b_axis,)), ((), ())), precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def write_columns(ref, rows_8C: jax.Array) -> None:
  """Writes row r of [8, C] to ref [rows, C, 128] as a column, in every lane."""
  column_CL = jnp.concatenate([rows_8C] * (LANES // SUBLANES), axis=0).T
  for r in range(ref.shape[0]):
    ref[r] = jnp.broadcast_to(column_CL[:, r:r + 1], ref.shape[1:])


def slide(x_CS: jax.Array, width: int, first: int) -> jax.Array:
  """[C, width]: row a moved to the right by first + a − (S − width) lanes, and cut."""
  return pltpu.roll(x_CS, (width + first) % x_CS.shape[1], 1, stride=1, stride_axis=0)[:, :width]


def slide_back(x_CS: jax.Array, first: int) -> jax.Array:
  """Moves row a to the left by first + a lanes; what leaves comes in on the right.

  Registers have eight rows: these in three steps, for a rotation by a negative stride does not exist.
  """
  lanes = x_CS.shape[1]
  x_CS = jnp.concatenate(
    [pltpu.roll(x_CS[row:row + SUBLANES], (-first - row) % lanes, 1) for row in range(0, x_CS.shape[0], SUBLANES)])
  row_CS = jax.lax.broadcasted_iota(jnp.int32, x_CS.shape, 0)
  for step in (1, 2, 4):
    x_CS = jnp.where(row_CS & step != 0, pltpu.roll(x_CS, lanes - step, 1), x_CS)
  return x_CS


def launch(
  kernel: Callable, *, name: str, grid: tuple[int, ...], parallel: int, prefetch: tuple[jax.Array, ...],
  operands: Operands, results: Operands, scratch: dict[str, tuple[tuple[int, ...], jnp.dtype]], flops: int,
  interpret: object,
) -> dict[str, jax.Array]:
  """Runs `kernel(*prefetched, refs)` over a grid whose first `parallel` axes are independent; results by name.

  refs: the blocks of operands, results and scratch by name. flops: of the whole grid, for the scheduler.
  """
  names = (*operands, *results, *scratch)

  def body(*refs):
    kernel(*refs[:len(prefetch)], dict(zip(names, refs[len(prefetch):], strict=True)))

  def spec(operand):
    return pl.BlockSpec(operand[1], operand[2])

  blocks = [(block, array.dtype) for array, block, _ in (*operands.values(), *results.values())]
  needed = 2 * sum(_bytes(*block) for block in blocks) + sum(_bytes(*block) for block in scratch.values())
  moved = sum(array.size * array.dtype.itemsize for array, *_ in (*operands.values(), *results.values()))
  out = pl.pallas_call(
    body, name=name, interpret=interpret,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(prefetch), grid=grid, in_specs=[spec(operand) for operand in operands.values()],
      out_specs=[spec(result) for result in results.values()],
      scratch_shapes=[pltpu.VMEM(*block) for block in scratch.values()]),
    out_shape=[result[0] for result in results.values()],
    cost_estimate=pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",) * parallel + ("arbitrary",) * (len(grid) - parallel),
      # half as much again for what the compiler keeps between instructions
      vmem_limit_bytes=min(max(_VMEM_LEAST, needed + needed // 2), _VMEM_MOST)),
  )(*prefetch, *[operand[0] for operand in operands.values()])
  return dict(zip(results, out, strict=True))


def auto_axes() -> set[str]:
  """The axes of a mesh of several devices over which XLA splits arrays by itself, which it cannot do with kernels."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
  return axes if mesh.size > 1 else set()


def on_parts(run: Callable, in_specs: tuple, out_specs: PartitionSpec | tuple) -> Callable:
  """`run` on each device's part of the arrays. Axes that are split already, as those of tokens, are left alone."""
  return jax.shard_map(run, in_specs=in_specs, out_specs=out_specs, axis_names=auto_axes(), check_vma=False)


def mesh_axis(name: str, *sizes: int) -> str | None:
  """The axis `name` of the mesh in use where it splits all sizes evenly under automatic sharding, else None."""
  mesh = jax.sharding.get_abstract_mesh()
  if name not in mesh.axis_names or mesh.shape[name] == 1 or any(size % mesh.shape[name] for size in sizes):
    return None
  return name if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[name] == AxisType.Auto else None


def _bytes(block: tuple[int | None, ...], dtype: jnp.dtype) -> int:
  """Of a block in vector memory, where the last axis fills lanes and the one before fills sublanes."""
  sizes = [size for size in block if size is not None]
  sizes[-1] = round_up(sizes[-1], LANES)
  if len(sizes) > 1:
    sizes[-2] = round_up(sizes[-2], SUBLANES)
  return math.prod(sizes) * jnp.dtype(dtype).itemsize
