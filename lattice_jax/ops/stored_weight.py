"""Matrices for inference, held as files hold them: output by output, as numbers or as codes with scales.

Decoding reads every weight once a token, so its speed is that of memory. With inputs of one row, XLA's CPU backend
computes the product straight from what is stored, in this order of axes: codes never become an array of floats. A few
rows are therefore multiplied one by one. With many rows codes do become floats, one layer at a time.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_PIECES = 16
_FEW = 4  # rows up to which a product each takes no longer than one of all


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

  def array(self, shape: tuple[int, ...]) -> jax.Array:
    """The weight as layers have it, float32: its first axis are inputs. For XLA to fuse, not to keep.

    Raises:
      ValueError: it has another number of inputs or outputs.
    """
    self._check(shape[0], math.prod(shape[1:]))
    return self._floats().T.reshape(shape)

  def multiply(self, x: jax.Array, outputs: tuple[int, ...]) -> jax.Array:
    """[..., *outputs] of x [..., K], in its dtype.

    Raises:
      ValueError: it has another number of inputs or outputs.
    """
    self._check(x.shape[-1], math.prod(outputs))
    return self._times(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], *outputs)

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
    x_RK = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    out_PRN = jax.lax.map(lambda piece: piece._times(x_RK), stacked)
    return jnp.moveaxis(out_PRN, 0, 1).reshape(*x.shape[:-1], num_rows)

  def _times(self, x_RK: jax.Array) -> jax.Array:
    """[R, N] in the dtype of x."""
    if not 1 < len(x_RK) <= _FEW:
      return x_RK @ self._floats().T.astype(x_RK.dtype)
    # the barrier keeps XLA from making one product of them again
    rows = [jax.lax.optimization_barrier(x_RK[n:n + 1]) for n in range(len(x_RK))]
    return jnp.concatenate([x_1K @ self._floats().T.astype(x_RK.dtype) for x_1K in rows])

  def _check(self, num_inputs: int, num_outputs: int) -> None:
    if self.code_NK.shape != (num_outputs, num_inputs):
      raise ValueError(
        f"a stored weight has {self.code_NK.shape[0]} outputs of {self.code_NK.shape[1]} inputs, and the model needs "
        f"{num_outputs} of {num_inputs}; load it with the config of its own model.")

  def _floats(self) -> jax.Array:
    float_NK = self.code_NK.astype(jnp.float32)
    if self.scale_NS is None:
      return float_NK
    part_NSP = float_NK.reshape(*self.scale_NS.shape, -1) * self.scale_NS[..., None]
    if self.offset_NS is not None:
      part_NSP += self.offset_NS[..., None]
    return part_NSP.reshape(float_NK.shape)
