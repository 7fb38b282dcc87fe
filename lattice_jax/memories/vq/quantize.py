"""The vector quantiser: nearest codebook row, straight-through gradient."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lattice_jax.dispatch import choose_impl, target_backend
from lattice_jax.memories.vq.state import rows_of
from pallas_kernels import flash_backends, vq


@flax.struct.dataclass
class Quantized:
  """key_BTHK: codebook row with the gradient of the key. code_BTH: int32. error_BTH: fp32 ‖k − row‖²; its gradient
  reaches the key only."""

  key_BTHK: jax.Array
  code_BTH: jax.Array
  error_BTH: jax.Array


def quantize(k: Float[Array, "B T H K"], rows: Float[Array, "H M K"], *, impl: str = "auto") -> Quantized:
  """Nearest row of each key in squared distance, in fp32; the lower code wins a tie."""
  k_BTHK = k.astype(jnp.float32)
  code_BTH = _nearest_code(k_BTHK, rows, impl)
  row_BTHK = rows_of(rows, code_BTH)
  return Quantized(
    key_BTHK=row_BTHK + (k_BTHK - jax.lax.stop_gradient(k_BTHK)),
    code_BTH=code_BTH,
    error_BTH=((k_BTHK - row_BTHK) ** 2).sum(-1),
  )


def _nearest_code(k_BTHK: jax.Array, rows_HMK: jax.Array, impl: str) -> jax.Array:
  backend = target_backend()
  chosen = choose_impl(
    "vq_codes", impl, pallas_reason=vq.supports_search(key_dim=rows_HMK.shape[2], codes=rows_HMK.shape[1]),
    backend_reason=flash_backends.supports_search(backend, key_dim=rows_HMK.shape[2]),
    auto_reason=flash_backends.prefers_xla(backend, k_BTHK.shape[1]))
  if chosen in ("pallas", "interpret"):
    interpret = chosen == "interpret"  # the TPU's, anywhere
    return vq.nearest_code(k_BTHK, rows_HMK, backend="tpu" if interpret else backend, interpret=interpret)
  dot_BTHM = jnp.einsum("BTHK,HMK->BTHM", jax.lax.stop_gradient(k_BTHK), rows_HMK, precision="highest")
  return jnp.argmin((rows_HMK**2).sum(-1) - 2 * dot_BTHM, axis=-1).astype(jnp.int32)
