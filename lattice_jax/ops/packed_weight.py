"""Matrices with two codes a byte: what files hold of 4-bit blocks, and half of what a `StoredWeight` of codes needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.ops.stored_weight import StoredWeight

BLOCK = 32  # inputs that share a scale
_LOWER, _FOUR = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(4)


@flax.struct.dataclass
class PackedWeight:
  """The matrix of a `StoredWeight` whose codes have 4 bits, in blocks of 32 inputs.

  pair_NJ: uint8; byte j of a block's 16 holds code j in its lower half and code 16 + j in its upper half.
  scale_NS, offset_NS: as those of a `StoredWeight`. zero: what is subtracted from a code.
  """

  pair_NJ: jax.Array | np.ndarray
  scale_NS: jax.Array | np.ndarray
  offset_NS: jax.Array | np.ndarray | None = None
  zero: int = flax.struct.field(pytree_node=False, default=0)

  def codes(self) -> jax.Array:
    """int8 [N, K]. A program of its own: fused into a product, XLA would take a code out of its byte at each use."""
    num_rows, num_bytes = self.pair_NJ.shape
    pair_NSJ = self.pair_NJ.reshape(num_rows, -1, BLOCK // 2)
    code_NSP = jnp.concatenate([pair_NSJ & 15, pair_NSJ >> 4], axis=-1).astype(jnp.int8)
    return (code_NSP - jnp.int8(self.zero)).reshape(num_rows, 2 * num_bytes)

  def with_codes(self, code_NK: jax.Array | jax.ShapeDtypeStruct) -> StoredWeight:
    """The matrix, given its codes."""
    return StoredWeight(code_NK=code_NK, scale_NS=self.scale_NS, offset_NS=self.offset_NS)


def unpack_codes(pair_NJ: np.ndarray, code_NK: np.ndarray, scratch: np.ndarray, *, zero: int = 0) -> None:
  """`PackedWeight.codes` on the host, into int8 `code_NK`; it holds no lock of Python meanwhile.

  Eight bytes at a time, and blocks of 16 are moved as one number: as fast as memory, in one thread. All arrays are
  contiguous and begin at multiples of 16. scratch: uint8, of a multiple of 16 bytes; the more, the fewer steps.
  """
  half_R2 = code_NK.reshape(-1).view(np.complex128).reshape(-1, 2)
  packed = pair_NJ.reshape(-1)
  for start in range(0, packed.size, scratch.size):
    word = packed[start:start + scratch.size].view(np.uint64)
    lower = scratch[:8 * word.size].view(np.uint64)
    rows = slice(start // 16, (start + 8 * word.size) // 16)
    np.bitwise_and(word, _LOWER, out=lower)
    half_R2[rows, 0] = lower.view(np.complex128)
    np.right_shift(word, _FOUR, out=lower)
    np.bitwise_and(lower, _LOWER, out=lower)
    half_R2[rows, 1] = lower.view(np.complex128)
  if zero:
    np.subtract(code_NK, np.int8(zero), out=code_NK)


def is_packed(leaf: object) -> bool:
  return isinstance(leaf, PackedWeight)


def packed_leaves(tree: Any) -> list[PackedWeight]:
  """Those of a tree of weights that hold two codes a byte."""
  return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_packed) if is_packed(leaf)]


def with_codes(tree: Any, codes: Sequence[Any]) -> Any:
  """The tree with the matrix of each of its `packed_leaves`, given their codes."""
  given = iter(codes)
  return jax.tree.map(lambda leaf: leaf.with_codes(next(given)) if is_packed(leaf) else leaf, tree, is_leaf=is_packed)
