"""How the recurrence is computed: token by token, or chunk by chunk in matrix products."""

from __future__ import annotations

from dataclasses import dataclass

FORMS = ("scan", "parallel")


@dataclass(frozen=True)
class Form:
  """The form that `impl="xla"` runs; all are in README.md of this folder.

  name: "scan" goes token by token. "parallel" finds the gates of a whole chunk by fixed-point rounds.
  chunk_len: tokens of a chunk of the other forms than "scan".
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
