"""Batches for the compiled program: how many updates a call runs, and their data on the devices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.config import Config
from lattice_jax.sharding import put_batch
from lattice_jax.types import Batch


@dataclass(frozen=True)
class Feed:
  """The data of one call: `count` updates from `first_step` on.

  batches: on the devices, stacked to steps_per_dispatch; what follows the first `count` is filling.
  host_batches: the same as numpy, for a dump.
  seconds: that the fetch took.
  """

  first_step: int
  count: int
  batches: Batch
  host_batches: list[Batch]
  seconds: float


@dataclass(frozen=True)
class Pending:
  """A call whose metrics have not been read."""

  feed: Feed
  metrics: Any
  started: float
  waited: float


def dispatch_size(config: Config, step: int, extra_boundaries: tuple[int, ...] = ()) -> int:
  """Updates of the call that starts at `step`: no save, evaluation or other boundary falls inside it."""
  periods = [period for period in (config.train.save_every, config.train.eval_every) if period]
  boundaries = [step + period - step % period for period in periods]
  boundaries += [config.train.steps, step + config.train.steps_per_dispatch]
  boundaries += [boundary for boundary in extra_boundaries if boundary > step]
  return min(boundaries) - step


def fetch(batches: Iterator[Batch], config: Config, mesh: Mesh, *, first_step: int, count: int) -> Feed:
  """Takes the next `count` batches and starts their transfer."""
  start = time.perf_counter()
  host_batches = [next(batches) for _ in range(count)]
  filled = host_batches + host_batches[-1:] * (config.train.steps_per_dispatch - count)
  stacked: Any = jax.tree.map(lambda *fields: np.stack([np.asarray(field) for field in fields]), *filled)
  on_devices = put_batch(stacked, mesh, rows=config.data.batch, stacked=True)
  return Feed(first_step, count, on_devices, host_batches, time.perf_counter() - start)
