"""The vector quantiser: nearest codebook row, straight-through gradient."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lattice_jax.ops.vq.state import rows_of


@flax.struct.dataclass
class Quantized:
  """key_BTHK: codebook row with the gradient of the key. code_BTH: int32. error_BTH: fp32 ‖k − row‖²; its gradient
  reaches the key only."""

  key_BTHK: jax.Array
  code_BTH: jax.Array
  error_BTH: jax.Array


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
