"""The delta rule in Pallas kernels: when they can run, and the call."""

from __future__ import annotations

import functools
from typing import Any

import jax

from lattice_jax.dispatch import target_backend
from lattice_jax.ops.decay.matrix import MatrixKernel
from lattice_jax.ops.decay.tokens import Inputs
from lattice_jax.types import MEMORY_BOUNDARY
from pallas_kernels import delta as kernels


def delta_kernel(chunk_len: int) -> MatrixKernel:
  """For chunks of so many tokens, filled up to a power of two; 0 leaves it to the kernel."""
  return MatrixKernel(_reasons, functools.partial(_run, chunk_len))


def _reasons(length: int, memory_BHKV: jax.Array) -> dict[str, str | None]:
  sizes = dict(zip(("key_dim", "value_dim"), memory_BHKV.shape[2:], strict=True))
  backend = target_backend()
  return {
    "pallas_reason": kernels.supports(dtype=memory_BHKV.dtype),
    "backend_reason": kernels.supports_backend(backend, **sizes),
    "auto_reason": kernels.prefers_xla(backend, length)}


def _run(
  chunk_len: int, decay: jax.Array, inputs: Inputs, memory_BHKV: jax.Array, *, interpret: bool
) -> tuple[jax.Array, Any]:
  q_BTHK, k_BTHK, v_BTHV, step_BTH1 = inputs
  return kernels.recurrence(
    q_BTHK, k_BTHK, v_BTHV, step_BTH1[..., 0], decay, memory_BHKV, chunk_len=chunk_len,
    backend="tpu" if interpret else target_backend(), interpret=interpret, boundary_name=MEMORY_BOUNDARY)
