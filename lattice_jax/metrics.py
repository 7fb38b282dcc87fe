"""(sum, count) pairs, and metrics.jsonl as it is read; `writers/` writes it.

metrics.jsonl has one line for every update and one for every evaluation (those have "split"). `step` counts updates
done. Fields that depend on the clock are `tokens_per_second` and all that start with `time_`; the others are the same
in every run of the same config and seed on the same machine, however often it was stopped and resumed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
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


def read_jsonl(path: Path, is_whole: Callable[[Record], bool] = lambda record: True) -> list[Record]:
  """The objects of a file with one a line; empty where there is no file.

  A last line without an end is of a process that was killed while it wrote, and left out. So is, with a sentence, one
  that is damaged: no JSON object, or not whole. Raises ValueError where there is a file that cannot be read.
  """
  try:
    *lines, _ = path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); move it away, or restore it.") from error
  records = []
  for number, line in enumerate(lines, start=1):
    record = _parse(line)
    if isinstance(record, dict) and is_whole(record):
      records.append(record)
    else:
      warn(f"line {number} of {path} is damaged and left out: {line[:60].decode(errors='replace')!r}")
  return records


def read_metric_lines(path: Path) -> list[Record]:
  """The lines of a metrics.jsonl, as `read_jsonl`."""
  return read_jsonl(path, _is_metrics)


def _parse(line: bytes) -> Any:
  try:
    return json.loads(line.decode())
  except (ValueError, RecursionError):
    return None


def _is_metrics(record: Record) -> bool:
  has_step = "step" in record and type(record["step"]) is int and record["step"] >= 0
  names = [record[name] if name in record else None for name in ("split", "protocol")]
  return has_step and ("split" not in record or all(isinstance(name, str) for name in names))


def warn(text: str) -> None:
  """A sentence for the user where there is no writer yet."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)
