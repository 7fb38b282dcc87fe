"""Whether every host sees the folder that checkpoints go to, asked before anything is computed."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from lattice_jax.checkpoint_folder import is_bucket
from lattice_jax.processes import propagate_failure
from lattice_jax.shown import first_line
from lattice_jax.writers.base import writing

_APPEARANCE_SECONDS = 10  # a network file system may show a file later on other hosts


def check_shared(folder: epath.Path) -> None:
  """Makes the folder; raises ValueError, in every process, if one of them does not see what the first writes there."""
  if jax.process_count() == 1 and not is_bucket(folder):
    return
  number = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31))))
  probe = folder / f"probe_{number}"
  with propagate_failure():
    if jax.process_index() == 0:
      with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
  try:
    with propagate_failure(), _storing(folder):
      if not _appears(probe):
        raise ValueError(
          f"{folder} here is not the folder that process 0 writes to; checkpoints need one that every host sees: give "
          "--checkpoints a folder of a shared file system or a bucket (gs://…).")
  finally:
    if jax.process_index() == 0:
      probe.unlink(missing_ok=True)


def _appears(path: epath.Path) -> bool:
  until = time.monotonic() + _APPEARANCE_SECONDS
  while not path.exists():
    if time.monotonic() > until:
      return False
    time.sleep(0.2)
  return True


@contextlib.contextmanager
def _storing(folder: epath.Path) -> Iterator[None]:
  """Turns what a file system or a bucket's client raises into one sentence."""
  if not is_bucket(folder):
    with writing(folder):
      yield
    return
  try:
    yield
  except ValueError:
    raise
  except Exception as error:  # each client has exceptions of its own
    raise ValueError(
      f"{folder} cannot be used ({first_line(error)}); check its name, the network and the credentials of this host, "
      "then run the same command.") from error
