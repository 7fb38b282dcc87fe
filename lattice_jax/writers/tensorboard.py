"""Curves for TensorBoard: reports and evaluations in workdir/tensorboard."""

from __future__ import annotations

import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from lattice_jax.files import Record
from lattice_jax.writers.base import Writer, check_present, series


class TensorBoardWriter(Writer):
  """One event file per process; its first event voids what earlier files hold about later steps.

  TensorBoard reads the files of a folder in the order of their names, so they are numbered. tensorboardX names them by
  the clock: a second file within one second would overwrite the first, and a clock set back would change the order.
  """

  def __init__(self, folder: Path, start_step: int, unit: str):
    self._unit = unit
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.suffix[1:]) for path in folder.glob("events.out.tfevents.*")), default=0)
    self._path = folder / f"events.out.tfevents.{number:06d}"
    self._records = RecordWriter(str(self._path))
    self._write(Event(file_version="brain.Event:2"))
    self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))

  def report(self, record: Record) -> None:
    for name, value in series(record, self._unit).items():
      self._write(Event(step=record["step"], summary=scalar(name, value)))
    self.flush()

  def evaluation(self, record: Record) -> None:
    self.report(record)

  def flush(self) -> None:
    self._records.flush()
    check_present(self._path)

  def hint(self) -> str:
    return f"curves: tensorboard --logdir={self._path.parent} (pip install tensorboard)"

  def close(self, status: int = 0) -> None:
    del status
    self._records.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._records.write(event.SerializeToString())
