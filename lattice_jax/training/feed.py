"""Batches for the compiled program: how many updates one call runs, and their data on the devices."""

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
  """The data of one call, which runs `count` updates from `first_step` on.

  batches: on the devices, stacked to steps_per_dispatch; all after the first `count` are padding.
  host_batches: the same in NumPy, for a dump.
  waited: seconds for which the devices had nothing to do but wait for this data.
  """

  first_step: int
  count: int
  batches: Batch
  host_batches: list[Batch]
  waited: float


def dispatch_size(config: Config, step: int, extra_boundaries: tuple[int, ...] = ()) -> int:
  """How many updates the call at `step` runs, so that no save, evaluation or other boundary falls inside it."""
  periods = [period for period in (config.train.save_every, config.train.eval_every) if period]
  boundaries = [step + period - step % period for period in periods]
  boundaries += [config.train.steps, step + config.train.steps_per_dispatch]
  boundaries += [boundary for boundary in extra_boundaries if boundary > step]
  return min(boundaries) - step


def fetch(
  batches: Iterator[Batch], config: Config, mesh: Mesh, *, first_step: int, count: int, computing: Any = ()
) -> Feed:
  """Takes the next `count` batches and starts their transfer.

  computing: arrays that the devices compute meanwhile; if they are still at it afterwards, nothing waited for the data.
  """
  start = time.perf_counter()
  host_batches = [next(batches) for _ in range(count)]
  padded = host_batches + host_batches[-1:] * (config.train.steps_per_dispatch - count)
  stacked: Any = jax.tree.map(lambda *fields: np.stack([np.asarray(field) for field in fields]), *padded)
  on_devices = put_batch(stacked, mesh, rows=config.data.batch, stacked=True)
  seconds = time.perf_counter() - start
  was_late = all(leaf.is_ready() for leaf in jax.tree.leaves(computing))
  return Feed(first_step, count, on_devices, host_batches, seconds if was_late else 0.0)
