"""How a recurrence is solved, and which way is the quicker one where the caller does not say."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import jax

from lattice_jax.dispatch import target_backend

FORMS = ("auto", "scan", "newton", "rounds")
JACOBIANS = ("diagonal", "block", "dense")

# Backend → tokens of a call from which "newton" is quicker than "scan"; None where it was at no length up to 131,072.
# Measured: docs/results/bench_parallel_recurrence.
QUICKER_FROM: dict[str, int | None] = {"cpu": None}


@dataclass(frozen=True)
class RecurrenceForm:
  """How tokens are taken; README.md of this folder derives each. All give the same, to rounding.

  name: "scan" goes token by token; "newton" and "rounds" solve a chunk at once, with and without the Jacobian of the
    step; "auto" is the quicker of "scan" and "newton" on this backend, and "scan" where that was not measured.
  jacobian: of the step at one token, as Newton's rounds and the adjoint take it: "diagonal" where every number of the
    state depends on itself alone, "block" where those of the last axis depend on one another, "dense" where all of a
    row do. A step that has more costs rounds, and in the end the scan, but no exactness.
  chunk_len: tokens that are solved at once, and of "scan" those whose gradients are made at once; memory grows with
    it. 32 keeps a chunk in a CPU core's own cache; a machine that does more at a time wants longer ones.
  rounds: of a chunk, at most. A chunk that is not solved by then is taken token by token.
  tolerance: a chunk is solved once a round moves no number of the state by more than this times the largest.
  """

  name: str = "auto"
  jacobian: str = "diagonal"
  chunk_len: int = 32
  rounds: int = 16
  tolerance: float = 1e-6

  def __post_init__(self):
    if self.name not in FORMS:
      raise ValueError(f"form.name={self.name!r} of op 'parallel_recurrence' is not one of {', '.join(FORMS)}.")
    if self.jacobian not in JACOBIANS:
      raise ValueError(
        f"form.jacobian={self.jacobian!r} of op 'parallel_recurrence' is not one of {', '.join(JACOBIANS)}.")
    if self.chunk_len < 1 or self.rounds < 1:
      raise ValueError(
        f"form.chunk_len={self.chunk_len} and form.rounds={self.rounds} of op 'parallel_recurrence' must be at least "
        "1; for no rounds use form.name='scan'.")
    if self.tolerance <= 0:
      raise ValueError(
        f"form.tolerance={self.tolerance} of op 'parallel_recurrence' must be above 0, for rounding never ends.")


def choose_form(form: RecurrenceForm, length: int) -> str:
  """"scan", "newton" or "rounds": what runs of a call of `length` tokens.

  One token is a step whatever the form. What "auto" took and why is logged once, as INFO of the logger "lattice_jax".
  """
  if length == 1:
    return "scan"
  if form.name != "auto":
    return form.name
  backend = target_backend()
  if backend not in QUICKER_FROM:
    _log_choice("scan", f"nothing was measured on {backend}; name a form to have another")
    return "scan"
  least = QUICKER_FROM[backend]
  chosen = "scan" if least is None or length < least else "newton"
  _log_choice(chosen, f"the quicker one on {backend}, docs/results/bench_parallel_recurrence")
  return chosen


@functools.cache
def _log_choice(chosen: str, reason: str) -> None:
  if jax.process_index() == 0:
    logging.getLogger("lattice_jax").info("op parallel_recurrence: form %s (%s)", chosen, reason)
