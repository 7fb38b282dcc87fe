"""Which implementation of an op runs: `auto | reference | xla | pallas | interpret`.

`auto` takes a Pallas kernel where one exists for the backend and shapes, else XLA, and says once per op why. A named
implementation never falls back. The environment variable LATTICE_JAX_IMPL overrides everything, for debugging.
"""

from __future__ import annotations

import functools
import os

from absl import logging

IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas", "interpret")
OVERRIDE = "LATTICE_JAX_IMPL"


def choose_impl(op: str, impl: str, *, pallas_reason: str | None) -> str:
  """The implementation to run: "reference", "xla", "pallas" or "interpret".

  Args:
    op: name for messages.
    impl: what the caller asked for.
    pallas_reason: why no Pallas kernel can run here, or None when one can.

  Raises:
    ValueError: the name is unknown, or a Pallas kernel was asked for that cannot run.
  """
  asked = os.environ[OVERRIDE] if OVERRIDE in os.environ else impl
  if asked not in IMPLEMENTATIONS:
    raise ValueError(f"impl={asked!r} of op {op!r} is not one of {', '.join(IMPLEMENTATIONS)}.")
  if asked == "auto":
    chosen = "pallas" if pallas_reason is None else "xla"
    _log_choice(op, chosen, pallas_reason or "a kernel supports this backend and these shapes")
    return chosen
  if asked in ("pallas", "interpret") and pallas_reason is not None:
    raise ValueError(f"impl={asked!r} of op {op!r} cannot run: {pallas_reason}; use impl='auto' or impl='xla'.")
  return asked


@functools.cache
def _log_choice(op: str, chosen: str, reason: str) -> None:
  logging.info("op %s: %s (%s)", op, chosen, reason)
