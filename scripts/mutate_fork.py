"""A pytest plugin for mutate.py: a process that has imported the libraries forks a child for every run of tests.

The process stops before it collects tests, when conftest.py is loaded but nothing of the project. For each line of its
input, a JSON list of tests, a child continues, imports the current code and runs them; the process answers with the
child's exit status as a line. This saves half the time of a small test.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from typing import Any

_LIBRARIES = (
  "flax.linen", "grain", "hypothesis.extra.numpy", "jax.experimental.pallas.mosaic_gpu", "jax.experimental.pallas.tpu",
  "optax", "orbax.checkpoint")


def pytest_sessionstart(session: Any) -> None:
  """Returns in children only."""
  for name in _LIBRARIES:
    importlib.import_module(name)
  warnings.simplefilter("ignore")  # JAX warns that a fork lacks its threads, but none has started yet
  for line in sys.__stdin__:
    child = os.fork()
    if not child:
      nowhere = os.open(os.devnull, os.O_RDWR)
      for stream in range(3):
        os.dup2(nowhere, stream)
      session.config.args = json.loads(line)
      return
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
  os._exit(0)
