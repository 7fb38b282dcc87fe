"""Where a run's metrics go. Each writer is one class in its own file and one row of `WRITERS`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import jax

from lattice_jax.files import Record
from lattice_jax.writers.base import RunInfo, Writer, writing
from lattice_jax.writers.jsonl import JsonlWriter
from lattice_jax.writers.stdout import StdoutWriter


def _tensorboard(info: RunInfo) -> Writer:
  from lattice_jax.writers.tensorboard import TensorBoardWriter  # only those who ask for it wait for the import

  return TensorBoardWriter(info.workdir / "tensorboard", info.start_step, info.unit)


def _wandb(info: RunInfo) -> Writer:
  if "WANDB_MODE" in os.environ and os.environ["WANDB_MODE"] == "disabled":
    return Writer()  # saves an import that takes seconds
  from lattice_jax.writers.wandb import WandbWriter

  return WandbWriter(info)


WRITERS: dict[str, Callable[[RunInfo], Writer]] = {
  "stdout": lambda info: StdoutWriter(info.unit),
  "jsonl": lambda info: JsonlWriter(info.workdir / "metrics.jsonl", info.start_step),
  "tensorboard": _tensorboard,
  "wandb": _wandb,
}


class Writers(Writer):
  """All writers of a run as one; only the first process has any.

  Every method but `close` raises ValueError, with one sentence, if something cannot be written.
  """

  def __init__(self, names: Iterable[str], info: RunInfo):
    check_writers(names)
    self._workdir = info.workdir
    with writing(info.workdir):
      self._writers = [WRITERS[name](info) for name in names if jax.process_index() == 0]

  def note(self, text: str) -> None:
    self._tell(lambda writer: writer.note(text))

  def update(self, record: Record) -> None:
    self._tell(lambda writer: writer.update(record))

  def report(self, record: Record) -> None:
    self._tell(lambda writer: writer.report(record))

  def evaluation(self, record: Record) -> None:
    self._tell(lambda writer: writer.evaluation(record))

  def flush(self) -> None:
    self._tell(lambda writer: writer.flush())

  def preempted(self) -> None:
    self._tell(lambda writer: writer.preempted())

  @contextlib.contextmanager
  def busy(self, what: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
      for writer in self._writers:
        stack.enter_context(writer.busy(what))
      yield

  def hints(self) -> list[str]:
    """The hints of all writers that have one."""
    return [hint for hint in (writer.hint() for writer in self._writers) if hint]

  def close(self, status: int = 0) -> None:
    for writer in self._writers:
      # a run that ends well flushed before its last save; after a failure, that failure is reported and not this one
      with contextlib.suppress(OSError):
        writer.close(status)

  def _tell(self, what: Callable[[Writer], None]) -> None:
    with writing(self._workdir):
      for writer in self._writers:
        what(writer)


def check_writers(names: Iterable[str]) -> None:
  """Raises ValueError for a name that is not a writer."""
  for name in names:
    if name not in WRITERS:
      raise ValueError(f"train.writers names {name!r}; known writers: {', '.join(WRITERS)}.")
