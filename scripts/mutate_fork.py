"""A pytest plugin for mutate.py: a process that has imported the libraries, and a child of it for every run of tests.

The process stops before it collects tests: conftest.py is loaded by then, and nothing of the project. For each line of
its input, a JSON list of tests, a child goes on, imports the code as it is by then and runs them; the child's exit
status is answered as a line. What all runs share is half the time of a small test.
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
  warnings.simplefilter("ignore")  # JAX warns of forks: its threads, none of which has begun, would be missing
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
