"""How a recurrence is solved, and which way is the quicker one where the caller does not say."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.dispatch import target_backend

FORMS = ("auto", "scan", "newton", "rounds")
JACOBIANS = ("diagonal", "block", "dense")


@dataclass(frozen=True)
class RecurrenceForm:
  """How tokens are taken; README.md of this folder derives each. All give the same, to rounding.

  name: "scan" goes token by token; "newton" and "rounds" solve a chunk at once, with and without the Jacobian of the
    step; "auto" is the quickest of them where it was measured.
  jacobian: of the step at one token, as Newton's rounds and the adjoint take it: "diagonal" where every number of the
    state depends on itself alone, "block" where those of the last axis depend on one another, "dense" where all of a
    row do. A step that has more costs rounds, and in the end the scan, but no exactness.
  chunk_len: tokens that are solved at once; memory grows with it.
  rounds: of a chunk, at most. A chunk that is not solved by then is taken token by token.
  tolerance: a chunk is solved once a round moves no number of the state by more than this times the largest.
  """

  name: str = "auto"
  jacobian: str = "diagonal"
  chunk_len: int = 256
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


def choose_form(form: RecurrenceForm, length: int, width: int) -> str:
  """"scan", "newton" or "rounds": what runs of a call of `length` tokens whose states have `width` numbers, all rows.

  One token is a step whatever the form.
  """
  if length == 1:
    return "scan"
  return form.name if form.name != "auto" else "scan"
