"""Curves for TensorBoard: reports and evaluations under workdir/tensorboard."""

from __future__ import annotations

import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from lattice_jax.files import Record
from lattice_jax.writers.base import Writer, check_present, series


class TensorBoardWriter(Writer):
  """One event file a process; it starts with an event that voids what earlier files hold about later steps.

  TensorBoard reads the files of a folder by name, so they are numbered: named by the clock, as tensorboardX names
  them, a file would be overwritten within the same second and misplaced when the clock is set back.
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

  def close(self) -> None:
    self._records.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._records.write(event.SerializeToString())
