"""The parameters of one block, or those outside the blocks, as arrays that are copied out of the files as stored.

Nothing is read here. Matrices of floats keep their width, 8-bit blocks become codes and scales, 4-bit blocks stay two
codes a byte; a copy only takes the parts of a block apart, so it is as fast as memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.formats.stored_tensor import StoredTensor
from lattice_jax.models.decoder import num_groups
from lattice_jax.models.pretrained.load import Pretrained
from lattice_jax.models.pretrained.tensors import block_shape, file_names, is_in_block, is_matrix, leaf_name
from lattice_jax.ops.packed_weight import BLOCK, PackedWeight
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.shown import shown_name

_FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_ZERO = {"Q4_0": 8, "Q4_1": 0}
_ROWS_AT_ONCE = 1024
# a block's 16 bytes are copied as one number, many times faster than as bytes
_SIXTEEN_BYTES = np.dtype(np.complex128)


@dataclass(frozen=True, eq=False)
class Part:
  """An array, and the bytes of the file that it is filled with.

  source: a view of the file. is_cast: its numbers are converted one by one; otherwise its bytes are what the array
  holds, whatever the two dtypes.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  tensor: StoredTensor
  source: np.ndarray
  is_cast: bool = False

  # whether `fill` reads through the mapping, page by page
  is_mapped = True

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def fill(self, out: np.ndarray) -> None:
    """Copies the file's bytes into `out`, which has the shape and dtype; it holds no lock of Python meanwhile."""
    target = out if self.is_cast else out.view(self.source.dtype)
    np.copyto(target.reshape(self.source.shape), self.source)

  def is_finite(self, out: np.ndarray) -> bool:
    """Whether what was copied holds no NaN or infinity."""
    return not jnp.issubdtype(self.dtype, jnp.floating) or bool(np.isfinite(out.sum(dtype=np.float64)))


class WholePart(Part):
  """All bytes of a tensor as they are: read by a plain call, as a copy out of the mapping costs page faults too."""

  is_mapped = False

  def fill(self, out: np.ndarray) -> None:
    self.tensor.file.read_into(self.tensor.start, out.reshape(-1).view(np.uint8))


class CodePart(Part):
  """int8 codes out of bytes of two; for matrices that are taken apart once and for all."""

  def fill(self, out: np.ndarray) -> None:
    zero = np.int8(_ZERO[self.tensor.kind])
    pairs = self.source.reshape(self.shape[0], -1, BLOCK // 2) if self.source.flags.c_contiguous else self.source
    codes = out.reshape(*pairs.shape[:-1], 2, BLOCK // 2)
    for start in range(0, len(pairs), _ROWS_AT_ONCE):
      rows = slice(start, start + _ROWS_AT_ONCE)
      codes[rows, ..., 0, :] = (pairs[rows] & 15).astype(np.int8) - zero
      codes[rows, ..., 1, :] = (pairs[rows] >> 4).astype(np.int8) - zero


def block_parts(pretrained: Pretrained, layer: int, *, packed: bool) -> Any:
  """The parameters of the block of one layer, each leaf or field a `Part`.

  packed: 4-bit codes stay two in a byte, as `PackedWeight`s.

  Raises:
    ValueError: a tensor is stored in a form that cannot be copied as it is.
  """
  model = pretrained.model
  block, group = f"block_{layer % len(model.pattern)}", layer // len(model.pattern)
  parts = _parts({"groups": {block: pretrained.shapes["groups"][block]}}, pretrained, group, packed=packed)
  return parts["groups"][block]


def outside_parts(pretrained: Pretrained) -> Any:
  """The parameters outside the blocks, as `block_parts`; 4-bit codes have a byte each."""
  shapes = {name: shape for name, shape in pretrained.shapes.items() if name != "groups"}
  return _parts(shapes, pretrained, 0, packed=False)


def _parts(shapes: Any, pretrained: Pretrained, group: int, *, packed: bool) -> Any:
  def make(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
    name = leaf_name(path)
    assert not is_in_block(name) or leaf.shape[0] == num_groups(pretrained.model)
    tensor = pretrained.weights.stored(file_names(name, pretrained.model)[group])
    if is_matrix(name):
      return _matrix(tensor, packed)
    if tensor.kind not in _FLOATS:
      raise _unknown(tensor)
    source = tensor.rows.view(_FLOATS[tensor.kind])[..., 0]
    return Part(block_shape(name, leaf.shape), np.dtype(np.float32), tensor, source, is_cast=True)

  return jax.tree_util.tree_map_with_path(make, shapes)


def _matrix(tensor: StoredTensor, packed: bool) -> StoredWeight | PackedWeight:
  num_rows = math.prod(tensor.rows.shape[:-1])

  def floats(source: np.ndarray, num: int) -> Part:
    return Part((num_rows, num), source.dtype, tensor, source)

  if tensor.kind in _FLOATS:
    source = tensor.rows.view(_FLOATS[tensor.kind])
    is_whole = source.flags.c_contiguous and source.nbytes == tensor.stop - tensor.start
    kind = WholePart if is_whole else Part
    return StoredWeight(kind((num_rows, source.shape[-1]), source.dtype, tensor, source))
  if tensor.kind == "Q8_0":
    blocks = _blocks(tensor, 34)
    codes = Part((num_rows, blocks.shape[-2] * BLOCK), np.dtype(np.int8), tensor, blocks[..., 2:].view(_SIXTEEN_BYTES))
    return StoredWeight(codes, floats(_float16(blocks, 0), blocks.shape[-2]))
  if tensor.kind in _ZERO:
    first = 4 if tensor.kind == "Q4_1" else 2
    blocks = _blocks(tensor, first + BLOCK // 2)
    num = blocks.shape[-2]
    scale = floats(_float16(blocks, 0), num)
    offset = floats(_float16(blocks, 2), num) if tensor.kind == "Q4_1" else None
    pairs = blocks[..., first:]
    if not packed:
      return StoredWeight(CodePart((num_rows, num * BLOCK), np.dtype(np.int8), tensor, pairs), scale, offset)
    part = Part((num_rows, num * BLOCK // 2), np.dtype(np.uint8), tensor, pairs.view(_SIXTEEN_BYTES))
    return PackedWeight(part, scale, offset, _ZERO[tensor.kind])
  raise _unknown(tensor)


def _blocks(tensor: StoredTensor, num_bytes: int) -> np.ndarray:
  return tensor.rows.reshape(*tensor.rows.shape[:-1], -1, num_bytes)


def _float16(blocks: np.ndarray, start: int) -> np.ndarray:
  return blocks[..., start:start + 2].view(np.float16)[..., 0]


def _unknown(tensor: StoredTensor) -> ValueError:
  return ValueError(
    f"{tensor.file.path}: tensor {shown_name(tensor.name)} has type {tensor.kind}, and weights are streamed in F32, "
    f"F16, BF16, Q8_0, Q4_0 or Q4_1 only; use a file in one of them, or leave the budget out.")
