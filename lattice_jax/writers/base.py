"""The interface of writers, which receive every update, report, evaluation and note of a run."""

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

  start_step: updates done before this process; records of later steps, left by an earlier process, are not part of it.
  description: the content of run.json.
  unit: bits are counted per "byte", "dim" or "answer".
  """

  workdir: Path
  start_step: int
  description: dict[str, Any]
  unit: str = "byte"


class Writer:
  """Receives what the training loop reports; this base class ignores it."""

  def note(self, text: str) -> None:
    """A sentence for the user."""

  def update(self, record: Record) -> None:
    """Called for every update, in order."""

  def report(self, record: Record) -> None:
    """Called every `train.log_every` updates, with means over these."""

  def evaluation(self, record: Record) -> None:
    """Called after every evaluation."""

  def flush(self) -> None:
    """Called before every checkpoint: all that was written must be on disk, and its files must still exist."""

  def preempted(self) -> None:
    """Called before `close` if a signal ended the run early, which the same command goes on with."""

  def close(self, status: int = 0) -> None:
    """Called once, at the end. status: that the command will exit with."""

  def hint(self) -> str:
    """How to view what is written, if that is not obvious."""
    return ""

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    """Surrounds work that takes long and reports nothing."""
    del what
    yield


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Turns the operating system's refusal to write into one sentence."""
  way_out = "run the same command: it continues from the newest checkpoint, or starts anew if there is none."
  try:
    yield
  except FileNotFoundError as error:
    raise ValueError(
      f"{error.filename or workdir} is gone: something else removed it during the run; {way_out}") from error
  except OSError as error:
    raise ValueError(
      f"{workdir} cannot be written to ({error.strerror or error}); free space or grant write permission, then "
      f"{way_out}") from error


def check_present(path: Path, file: TextIO | None = None) -> None:
  """Raises FileNotFoundError if `path` no longer exists, or is no longer the open `file`."""
  there = path.stat()
  if file is not None and not os.path.samestat(there, os.fstat(file.fileno())):
    raise FileNotFoundError(errno.ENOENT, "it was replaced", str(path))


def series(record: Record, unit: str) -> dict[str, float]:
  """The finite numbers of a report or evaluation, by the name of their curve, such as train/loss."""
  group = f"eval_{record['split']}_{record['protocol']}" if "split" in record else "train"
  return {
    f"{group}/{name.replace('bits_per_byte', f'bits_per_{unit}')}": float(value) for name, value in record.items()
    if name not in ("step", "total") and isinstance(value, (int, float)) and math.isfinite(value)}
