"""Several processes fail together: none is left waiting for one that has given up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
  """Raises a ValueError in every process where the block raised one in any; every process must enter it.

  The block must not itself wait for other processes.
  """
  problem: ValueError | None = None
  try:
    yield
  except ValueError as error:
    problem = error
  failed = np.asarray([problem is not None])
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(failed, tiled=True)
  if problem is not None:
    raise problem
  if failed.any():
    raise ValueError(
      f"process {int(np.argmax(failed))} of {len(failed)} cannot take part, and its own output says why; the others "
      "stop with it.")
