"""What a writer is: told of every update, report and evaluation of a run, and of every save."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lattice_jax.files import Record


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
    """Called before every checkpoint: what was written must survive the process, and must still be there."""

  def close(self) -> None:
    """Called once."""

  def hint(self) -> str:
    """How to look at what is written, where that needs to be said."""
    return ""

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    """Around something that takes long and has nothing to report."""
    del what
    yield


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Turns the system's refusal to write into one sentence."""
  goes_on = "run the same command: it goes on from the newest checkpoint, or starts anew where there is none."
  try:
    yield
  except FileNotFoundError as error:
    raise ValueError(
      f"{error.filename or workdir} is gone: something else removed it while the run went on; {goes_on}") from error
  except OSError as error:
    raise ValueError(
      f"{workdir} cannot be written to ({error.strerror or error}); make room or give the right to write, then "
      f"{goes_on}") from error


def check_present(path: Path, file: TextIO | None = None) -> None:
  """Raises FileNotFoundError where there is nothing at `path` any more, or something else than the open `file`."""
  there = path.stat()
  if file is not None and not os.path.samestat(there, os.fstat(file.fileno())):
    raise FileNotFoundError(errno.ENOENT, "it was replaced", str(path))


def series(record: Record, unit: str) -> dict[str, float]:
  """The finite numbers of a report or evaluation by the name of their curve, as in train/loss."""
  group = f"eval_{record['split']}_{record['protocol']}" if "split" in record else "train"
  return {
    f"{group}/{name.replace('bits_per_byte', f'bits_per_{unit}')}": float(value) for name, value in record.items()
    if name not in ("step", "total") and isinstance(value, (int, float)) and math.isfinite(value)}
