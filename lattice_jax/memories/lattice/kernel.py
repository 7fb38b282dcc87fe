"""The exact scan in Pallas kernels: when they can run, and the call."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.dispatch import choose_impl, target_backend
from lattice_jax.memories.lattice.chunk import with_rates
from lattice_jax.memories.lattice.form import Form
from lattice_jax.memories.lattice.rule import Rule
from lattice_jax.memories.lattice.state import LatticeSlots
from lattice_jax.memories.lattice.tokens import Tokens
from lattice_jax.types import MEMORY_BOUNDARY
from pallas_kernels import lattice as kernels


def choose_lattice_impl(
  impl: str, rule: Rule, form: Form, *, slots: int, value_dim: int, dtype: jnp.dtype
) -> str:
  """As `choose_impl`, for heads of so many slots and values, held in `dtype`."""
  sizes = {"slots": slots, "value_dim": value_dim}
  reason = kernels.supports(
    objective=rule.objective, state=rule.state, projected=rule.is_projected, exact=form.name == "scan", dtype=dtype,
    **sizes)
  backend = target_backend()
  return choose_impl(
    "lattice", impl, pallas_reason=reason,
    backend_reason=kernels.supports_backend(backend, state=rule.state, **sizes),
    auto_reason=kernels.AUTO_REASON[backend] if backend in kernels.AUTO_REASON else None)


def lattice_kernel(
  rule: Rule, tokens: Tokens, is_start_BT: jax.Array, start: LatticeSlots, slots: LatticeSlots, *, interpret: bool
) -> tuple[jax.Array, LatticeSlots]:
  """As `lattice_reference`, where `choose_lattice_impl` allows it. interpret: runs the TPU kernel anywhere."""
  dtype, rest_BTH = slots.unit_BHMV.dtype, None
  if rule.state == "returning":
    rest_BTH = 1 - tokens.forget_BTH.astype(dtype)
  else:
    tokens = with_rates(tokens, dtype)
  out_BTHV, unit_BHMV = kernels.recurrence(
    tokens.q_BTHM, tokens.k_BTHM, tokens.v_BTHV, tokens.step_BTH, is_start_BT, start.unit_BHMV, slots.unit_BHMV,
    objective=rule.objective, rest=rest_BTH, backend="tpu" if interpret else target_backend(), interpret=interpret,
    boundary_name=MEMORY_BOUNDARY)
  return out_BTHV, LatticeSlots(unit_BHMV, None)
