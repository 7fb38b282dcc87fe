"""The vector quantiser: nearest codebook row, straight-through gradient, and the codebook's moving average."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.ops.vq.state import rows_of

COUNT_FLOOR = 0.01  # a code that is never used drifts to the origin once its moving count falls below this


@flax.struct.dataclass
class Quantized:
  """key_BTHK: codebook row with the gradient of the key. code_BTH: int32. error_BTH: fp32 ‖k − row‖²; its gradient
  reaches the key only."""

  key_BTHK: jax.Array
  code_BTH: jax.Array
  error_BTH: jax.Array


def codebook(count: Float[Array, "H M"], total: Float[Array, "H M K"]) -> Float[Array, "H M K"]:
  """Codebook rows from the moving count and the moving sum of keys; no gradient."""
  return jax.lax.stop_gradient(total / jnp.maximum(count, COUNT_FLOOR)[..., None])


def quantize(k: Float[Array, "B T H K"], rows: Float[Array, "H M K"]) -> Quantized:
  """Nearest row of each key in squared distance, in fp32; the lower code wins a tie."""
  k_BTHK = k.astype(jnp.float32)
  dot_BTHM = jnp.einsum("BTHK,HMK->BTHM", jax.lax.stop_gradient(k_BTHK), rows, precision="highest")
  code_BTH = jnp.argmin((rows**2).sum(-1) - 2 * dot_BTHM, axis=-1).astype(jnp.int32)
  row_BTHK = rows_of(rows, code_BTH)
  return Quantized(
    key_BTHK=row_BTHK + (k_BTHK - jax.lax.stop_gradient(k_BTHK)),
    code_BTH=code_BTH,
    error_BTH=((k_BTHK - row_BTHK) ** 2).sum(-1),
  )


def code_statistics(
  k: Float[Array, "B T H K"], code: Int[Array, "B T H"], valid: Bool[Array, "B T"], codes: int,
) -> tuple[Float[Array, "H M"], Float[Array, "H M K"]]:
  """Number of valid keys of each code and their sum, over batch and time."""
  one_hot_BTHM = jax.nn.one_hot(code, codes, dtype=jnp.float32) * valid[..., None, None]
  k_BTHK = jax.lax.stop_gradient(k).astype(jnp.float32)
  return one_hot_BTHM.sum((0, 1)), jnp.einsum("BTHM,BTHK->HMK", one_hot_BTHM, k_BTHK, precision="highest")


def moving_average(old: jax.Array, new: jax.Array, rate: float) -> jax.Array:
  """rate·old + (1 − rate)·new; `new` is a sum over the whole global batch of an update."""
  return rate * old + (1 - rate) * new
