"""(sum, count) pairs, and the writers of progress lines and metrics.jsonl.

metrics.jsonl has one line for every update and one for every evaluation (those have "split"). `step` counts updates
done. Fields that depend on the clock are `tokens_per_second` and all that start with `time_`; the others are the same
in every run of the same config and seed on the same machine, however often it was stopped and resumed.

A writer is one class and one row of `WRITERS`; its methods may all stay as they are in `Writer`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.types import SumCount

Record = dict[str, Any]


def ratio(pair: SumCount) -> jax.Array:
  """sum / count, 0 where nothing was counted."""
  total, count = pair
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def bits_per_byte(nll: float, *, tokens_per_byte: float) -> float:
  """From the mean negative log-likelihood of a token in nats."""
  return nll / math.log(2) * tokens_per_byte


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


class StdoutWriter(Writer):
  """One aligned line a report."""

  def note(self, text: str) -> None:
    print(text, flush=True)

  def report(self, record: Record) -> None:
    width = len(str(record["total"]))
    mfu = "" if record["mfu"] is None else f"  mfu {record['mfu']:6.1%}"
    print(
      f"step {record['step']:>{width}}/{record['total']}  loss {_number(record['loss'], 4)}  "
      f"bits/byte {_number(record['bits_per_byte'], 4)}  grad {_number(record['grad_norm'], 3)}  "
      f"{_count(record['tokens_per_second'])} tok/s  wait {record['time_data_wait']:6.1%}{mfu}  "
      f"eta {_duration(record['time_left'])}", flush=True)

  def evaluation(self, record: Record) -> None:
    print(
      f"eval {record['split']} at step {record['step']}: bits/byte {record['bits_per_byte']:.4f} over "
      f"{record['tokens']} tokens ({record['protocol']}) in {record['time_eval']:.1f} s", flush=True)


class JsonlWriter(Writer):
  """Appends to metrics.jsonl; lines after `start_step`, left by a run that was cut off, are removed first."""

  def __init__(self, path: Path, start_step: int):
    drop_lines_after(path, start_step)
    self._file = path.open("a", encoding="utf-8")

  def update(self, record: Record) -> None:
    self._file.write(json.dumps({name: _json_value(value) for name, value in record.items()}) + "\n")

  def evaluation(self, record: Record) -> None:
    self.update(record)

  def report(self, record: Record) -> None:
    self._file.flush()

  def flush(self) -> None:
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


WRITERS: dict[str, Callable[[Path, int], Writer]] = {
  "stdout": lambda workdir, start_step: StdoutWriter(),
  "jsonl": lambda workdir, start_step: JsonlWriter(workdir / "metrics.jsonl", start_step),
}


class Writers(Writer):
  """All writers of a run as one; other processes than the first get none."""

  def __init__(self, names: Iterable[str], workdir: Path, start_step: int):
    check_writers(names)
    self._writers = [WRITERS[name](workdir, start_step) for name in names if jax.process_index() == 0]

  def note(self, text: str) -> None:
    for writer in self._writers:
      writer.note(text)

  def update(self, record: Record) -> None:
    for writer in self._writers:
      writer.update(record)

  def report(self, record: Record) -> None:
    for writer in self._writers:
      writer.report(record)

  def evaluation(self, record: Record) -> None:
    for writer in self._writers:
      writer.evaluation(record)

  def flush(self) -> None:
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


def check_writers(names: Iterable[str]) -> None:
  """Raises ValueError for a name that is no writer."""
  for name in names:
    if name not in WRITERS:
      raise ValueError(f"train.writers names {name!r}; known writers: {', '.join(WRITERS)}.")


def read_jsonl(path: Path) -> list[Record]:
  """The whole lines of a metrics.jsonl; a line cut off in the middle ends the file. Empty where there is no file."""
  records: list[Record] = []
  if not path.exists():
    return records
  for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
    if not line.endswith("\n"):
      break
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def drop_lines_after(path: Path, step: int) -> None:
  """Rewrites a metrics.jsonl, in one rename, without the lines of later steps."""
  if not path.exists():
    return
  kept = "".join(json.dumps(record) + "\n" for record in read_jsonl(path) if record["step"] <= step)
  if kept == path.read_text(encoding="utf-8"):
    return
  partial = path.with_suffix(".partial")
  partial.write_text(kept, encoding="utf-8")
  partial.replace(path)


def warn(text: str) -> None:
  """A sentence for the user where there is no writer yet."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)


def _json_value(value: Any) -> Any:
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, digits: int) -> str:
  return f"{value:{digits + 4}.{digits}f}"


def _count(value: float) -> str:
  for unit, size in (("M", 1e6), ("k", 1e3)):
    if value >= size:
      return f"{value / size:6.2f}{unit}"
  return f"{value:6.1f} "


def _duration(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
