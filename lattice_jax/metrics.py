"""Means of (sum, count) pairs, bits per byte, and how metrics.jsonl is read; `writers/` writes it.

metrics.jsonl has one line for every update and one for every evaluation; the latter have the field "split". `step`
counts finished updates. `tokens_per_second` and the fields that start with `time_` depend on the clock; all others are
the same in every run of one config and seed on one machine, however often it was stopped and resumed.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp

from lattice_jax.files import Record, read_jsonl
from lattice_jax.types import SumCount


def ratio(pair: SumCount) -> jax.Array:
  """sum / count, or 0 where nothing was counted."""
  total, count = pair
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def bits_per_byte(nll: float, *, tokens_per_byte: float) -> float:
  """Bits per byte from the mean negative log-likelihood of a token in nats."""
  return nll / math.log(2) * tokens_per_byte


def read_metric_lines(path: Path) -> list[Record]:
  """The records of a metrics.jsonl; see `read_jsonl`."""
  return read_jsonl(path, _is_metrics)


def _is_metrics(record: Record) -> bool:
  has_step = "step" in record and type(record["step"]) is int and record["step"] >= 0
  names = [record[name] if name in record else None for name in ("split", "protocol")]
  return has_step and ("split" not in record or all(isinstance(name, str) for name in names))
