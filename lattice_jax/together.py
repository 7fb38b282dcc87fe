"""Several processes fail together: none is left waiting for one that has given up."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from lattice_jax.shown import first_line

_MESSAGE_BYTES = 512


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
  """Fails in every process where the block fails in any; every process must enter it.

  Where the block went well the error of the first process that failed is raised, as a ValueError. The block must not
  itself wait for other processes.
  """
  problem: Exception | None = None
  try:
    yield
  except Exception as error:
    problem = error
  heard = _messages(problem) if jax.process_count() > 1 else {}
  if problem is not None:
    raise problem
  for process, message in heard.items():
    raise ValueError(f"process {process} of {jax.process_count()}: {message}")


def _messages(problem: Exception | None) -> dict[int, str]:
  """What every process that failed has to say, by its number."""
  said = np.zeros(_MESSAGE_BYTES, np.uint8)
  if problem is not None:
    text = np.frombuffer(first_line(problem, limit=_MESSAGE_BYTES).encode()[:_MESSAGE_BYTES], np.uint8)
    said[:len(text)] = text
  heard = multihost_utils.process_allgather(said)
  return {
    int(process): heard[process].tobytes().rstrip(b"\0").decode(errors="replace")
    for process in np.flatnonzero(heard.any(axis=1))}


def check_agreement(facts: dict[str, str]) -> None:
  """Raises ValueError, in every process, where a fact is not the same in all; every process must call it."""
  if jax.process_count() == 1:
    return
  digests = np.stack([np.frombuffer(hashlib.sha256(fact.encode()).digest(), np.uint8) for fact in facts.values()])
  heard = multihost_utils.process_allgather(digests)
  for process, theirs in enumerate(heard):
    for name, is_same in zip(facts, (theirs == heard[0]).all(axis=1), strict=True):
      if not is_same:
        raise ValueError(
          f"{name} of process {process} differs from that of process 0; start every process with the same command on "
          "the same files.")
