"""How the recurrence is computed: token by token, or chunk by chunk in matrix products; exactly or not."""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.memories.lattice.config import FORMS

EXACT_FORMS, APPROXIMATE_FORMS = FORMS[:2], FORMS[2:]


@dataclass(frozen=True)
class Form:
  """How tokens are taken; README.md of this folder derives each.

  name: "scan" goes token by token. "parallel" finds the gates of a whole chunk by fixed-point rounds. The others are
    approximations that take what a token needs of the slots from those at the start of its chunk: "live" the gates,
    "frozen" gates and directions, "additive" whole steps, which are then summed. Their chunks begin with the document.
  chunk_len: tokens of a chunk of the forms other than "scan". A part of the definition of approximate forms.
  rounds: of "parallel", at most; `chunk_len` of them are exact whatever the input.
  tolerance: the rounds of a chunk end early once no inner product of slot and direction changes by more than this
    times the longest direction; 0 runs them all.
  """

  name: str = "scan"
  chunk_len: int = 16
  rounds: int = 16
  tolerance: float = 1e-6

  def __post_init__(self):
    if self.name not in FORMS:
      raise ValueError(f"form.name={self.name!r} of op 'lattice' is not one of {', '.join(FORMS)}.")
    if self.chunk_len < 1:
      raise ValueError(f"form.chunk_len={self.chunk_len} of op 'lattice' must be at least 1.")
    if self.rounds < 0:
      raise ValueError(f"form.rounds={self.rounds} of op 'lattice' must be at least 0.")

  @property
  def is_approximate(self) -> bool:
    """Whether chunks belong to the definition, and an open one to the state."""
    return self.name in APPROXIMATE_FORMS
