"""What a writer is: told of every update, report and evaluation of a run, and of every save."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.metrics import Record


@dataclass(frozen=True)
class RunInfo:
  """The run that a writer serves.

  start_step: updates done before this process; whatever an earlier one wrote about later steps is not part of the run.
  description: the content of run.json.
  unit: what bits are counted by, "byte", "dim" or "answer".
  """

  workdir: Path
  start_step: int
  description: dict[str, Any]
  unit: str = "byte"


class Writer:
  """What the training loop tells; by default nothing is done with it."""

  def note(self, text: str) -> None:
    """One sentence that is said once."""

  def update(self, record: Record) -> None:
    """Called for every update, in order."""

  def report(self, record: Record) -> None:
    """Called every `train.log_every` updates with means over them."""

  def evaluation(self, record: Record) -> None:
    """Called after every evaluation."""

  def flush(self) -> None:
    """Called before every checkpoint: what was written must survive the process."""

  def close(self) -> None:
    """Called once."""


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Turns the system's refusal to write into one sentence."""
  try:
    yield
  except OSError as error:
    raise ValueError(
      f"{workdir} cannot be written to ({error.strerror or error}); make room or give the right to write, then run the "
      "same command: it goes on from the newest checkpoint, or starts anew where there is none.") from error


def series(record: Record, unit: str) -> dict[str, float]:
  """The finite numbers of a report or evaluation by the name of their curve, as in train/loss."""
  group = f"eval_{record['split']}_{record['protocol']}" if "split" in record else "train"
  return {
    f"{group}/{name.replace('bits_per_byte', f'bits_per_{unit}')}": float(value) for name, value in record.items()
    if name not in ("step", "total") and isinstance(value, (int, float)) and math.isfinite(value)}
