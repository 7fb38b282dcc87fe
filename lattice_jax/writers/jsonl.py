"""metrics.jsonl, the record from which every other view of a run can be made."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from lattice_jax.files import Record, replace_file, to_jsonl
from lattice_jax.metrics import read_metric_lines
from lattice_jax.writers.base import Writer, check_present


class JsonlWriter(Writer):
  """Appends to metrics.jsonl, after removing lines of steps beyond `start_step` that an interrupted process left."""

  def __init__(self, path: Path, start_step: int):
    drop_lines_after(path, start_step)
    self._path = path
    self._file = path.open("a", encoding="utf-8")

  def update(self, record: Record) -> None:
    self._file.write(to_jsonl([{name: _json_value(value) for name, value in record.items()}]))

  def evaluation(self, record: Record) -> None:
    self.update(record)

  def report(self, record: Record) -> None:
    self._file.flush()

  def flush(self) -> None:
    self._file.flush()
    os.fsync(self._file.fileno())
    check_present(self._path, self._file)

  def close(self, status: int = 0) -> None:
    del status
    self._file.close()


def drop_lines_after(path: Path, step: int) -> None:
  """Replaces a metrics.jsonl by one without the lines of later steps and without damaged lines."""
  if not path.exists():
    return
  kept = to_jsonl(record for record in read_metric_lines(path) if record["step"] <= step).encode()
  if kept != path.read_bytes():
    replace_file(path, kept)


def _json_value(value: Any) -> Any:
  return None if isinstance(value, float) and not math.isfinite(value) else value
