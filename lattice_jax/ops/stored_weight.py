"""Matrices for inference, held as files hold them: output by output, as numbers or as codes with scales.

Decoding reads every weight once a token, so its speed is that of memory. With inputs of one row, XLA's CPU backend
computes the product straight from what is stored, in this order of axes: codes never become an array of floats. With
many rows they do, one layer at a time.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_PIECES = 16


@flax.struct.dataclass
class StoredWeight:
  """N rows, one an output, of K inputs: code · scale + offset.

  code_NK: int8, or floats of any width. scale_NS, offset_NS: floats, for each of S equal parts of the inputs; None is
  one and zero. A stack of matrices has its axis in front of all three.
  """

  code_NK: jax.Array | np.ndarray
  scale_NS: jax.Array | np.ndarray | None = None
  offset_NS: jax.Array | np.ndarray | None = None

  def rows(self, index: jax.Array) -> jax.Array:
    """float32 [*index, K]."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0), self)._floats()

  def array(self, shape: tuple[int, ...], num_inputs: int = 1) -> jax.Array:
    """The weight as layers have it, float32: its first `num_inputs` axes are inputs. For XLA to fuse, not to keep.

    Raises:
      ValueError: it has another number of inputs or outputs.
    """
    wanted = math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs])
    if self.code_NK.shape != wanted:
      raise ValueError(
        f"a stored weight has {self.code_NK.shape[0]} outputs of {self.code_NK.shape[1]} inputs, and the model needs "
        f"{wanted[0]} of {wanted[1]}; load it with the config of its own model.")
    return self._floats().T.reshape(shape)

  @property
  def is_coded(self) -> bool:
    return self.scale_NS is not None

  def products(self, x: jax.Array) -> jax.Array:
    """[..., N] in float32 of x [..., K], for large matrices that do not change in a loop over tokens.

    Piece by piece, because XLA would otherwise make floats of the whole before that loop, and read those.
    """
    num_rows = self.code_NK.shape[0]
    pieces = math.gcd(num_rows, _PIECES)
    stacked = jax.tree.map(lambda part: part.reshape(pieces, num_rows // pieces, *part.shape[1:]), self)
    out = jax.lax.map(lambda piece: x.astype(jnp.float32) @ piece._floats().T, stacked)
    return jnp.moveaxis(out, 0, -2).reshape(*x.shape[:-1], num_rows)

  def _floats(self) -> jax.Array:
    float_NK = self.code_NK.astype(jnp.float32)
    if self.scale_NS is None:
      return float_NK
    part_NSP = float_NK.reshape(*self.scale_NS.shape, -1) * self.scale_NS[..., None]
    if self.offset_NS is not None:
      part_NSP += self.offset_NS[..., None]
    return part_NSP.reshape(float_NK.shape)
