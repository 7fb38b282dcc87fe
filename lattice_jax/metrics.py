"""(sum, count) pairs, and metrics.jsonl as it is read; `writers/` writes it.

metrics.jsonl has one line for every update and one for every evaluation (those have "split"). `step` counts updates
done. Fields that depend on the clock are `tokens_per_second` and all that start with `time_`; the others are the same
in every run of the same config and seed on the same machine, however often it was stopped and resumed.
"""

from __future__ import annotations

import json
import math
import sys
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


def warn(text: str) -> None:
  """A sentence for the user where there is no writer yet."""
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)
