"""Which implementation of an op runs: `auto | reference | xla | pallas | interpret`.

`auto` takes a Pallas kernel where one exists for the backend and shapes, else XLA. What it took and why is logged once
per op and reason, as INFO of the logger "lattice_jax", which commands print. A named implementation never falls back.
The environment variable LATTICE_JAX_IMPL overrides everything, for debugging; LATTICE_JAX_BACKEND names the backend
where programs are compiled for another than this machine's.
"""

from __future__ import annotations

import functools
import logging
import os

import jax

IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas", "interpret")
OVERRIDE = "LATTICE_JAX_IMPL"
BACKEND = "LATTICE_JAX_BACKEND"


def target_backend() -> str:
  """The backend that programs are compiled for: cpu, gpu or tpu."""
  return os.environ[BACKEND] if BACKEND in os.environ else jax.default_backend()


def choose_impl(
  op: str, impl: str, *, pallas_reason: str | None, backend_reason: str | None = None, auto_reason: str | None = None
) -> str:
  """The implementation to run: "reference", "xla", "pallas" or "interpret".

  Args:
    op: name for messages.
    impl: what the caller asked for.
    pallas_reason: why no Pallas kernel can run this call anywhere, or None when one can.
    backend_reason: likewise on this backend; interpreted kernels run on all.
    auto_reason: why a kernel that can run is not taken unless it is asked for.

  Raises:
    ValueError: the name is unknown, or a Pallas kernel was asked for that cannot run.
  """
  asked = os.environ[OVERRIDE] if OVERRIDE in os.environ else impl
  if asked not in IMPLEMENTATIONS:
    raise ValueError(f"impl={asked!r} of op {op!r} is not one of {', '.join(IMPLEMENTATIONS)}.")
  here_reason = pallas_reason or backend_reason
  if asked == "auto":
    reason = here_reason or auto_reason
    chosen = "xla" if reason else "pallas"
    _log_choice(op, chosen, reason or "a kernel supports this backend and these shapes")
    return chosen
  reason = {"pallas": here_reason, "interpret": pallas_reason}[asked] if asked in ("pallas", "interpret") else None
  if reason:
    raise ValueError(f"impl={asked!r} of op {op!r} cannot run: {reason}; use impl='auto' or impl='xla'.")
  return asked


@functools.cache
def _log_choice(op: str, chosen: str, reason: str) -> None:
  if jax.process_index() == 0:
    logging.getLogger("lattice_jax").info("op %s: %s (%s)", op, chosen, reason)
