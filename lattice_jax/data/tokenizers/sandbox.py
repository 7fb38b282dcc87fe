"""Runs what strangers wrote, such as templates, in a process of its own with limits of time and memory."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lattice_jax.shown import reason_of

SECONDS = 5  # of CPU time, so that a busy machine makes no difference
MEMORY_BYTES = 2 << 30
_WAITING_SECONDS = 120  # for a process that uses no CPU time either
_LONGEST_ANSWER = 16 << 20
_ROOT = Path(__file__).resolve().parents[3]


def call_in_sandbox(module: str, request: Any) -> Any:
  """The result of `answer(request)` in lattice_jax.data.tokenizers.`module`; request and result are JSON values.

  Raises ValueError if the call fails, ends its process, or exceeds a limit; the message is the reason without a full
  stop.
  """
  path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  # -P, because a module in the working folder could hide a library
  command = [sys.executable, "-P", "-m", __name__, module, str(SECONDS), str(MEMORY_BYTES)]
  too_long = f"it takes more than {SECONDS} seconds"
  try:
    done = subprocess.run(
      command, input=json.dumps(request).encode(), capture_output=True, timeout=_WAITING_SECONDS, check=False,
      env=os.environ | {"PYTHONPATH": path})
  except subprocess.TimeoutExpired as error:
    raise ValueError(too_long) from error
  if -done.returncode == signal.SIGXCPU:
    raise ValueError(too_long)
  if done.returncode:
    raise ValueError(f"it crashes the library that reads it (exit status {done.returncode})")
  outcome = json.loads(done.stdout)
  if "reason" in outcome:
    raise ValueError(outcome["reason"])
  return outcome["answer"]


def _serve(module: str, seconds: int, memory_bytes: int) -> None:
  """The child process: reads a request from standard input and writes the answer to standard output."""
  request = json.load(sys.stdin.buffer)
  answer = importlib.import_module(f"lattice_jax.data.tokenizers.{module}").answer
  for kind, amount in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory_bytes)):
    _limit(kind, amount)
  try:
    value = answer(request)
    is_long = isinstance(value, str) and len(value) > _LONGEST_ANSWER
    outcome = {"reason": f"its answer has {len(value):,} characters"} if is_long else {"answer": value}
  except MemoryError:
    outcome = {"reason": f"it takes more than {memory_bytes:,} bytes of memory"}
  except RecursionError:
    outcome = {"reason": "its recursion does not end"}
  # a panic in a native library is not an Exception
  except BaseException as error:
    outcome = {"reason": reason_of(error)}
  json.dump(outcome, sys.stdout)


def _limit(kind: int, amount: int) -> None:
  """Sets a limit, unless a lower one holds already."""
  _, most = resource.getrlimit(kind)
  with contextlib.suppress(ValueError):  # macOS cannot limit memory
    resource.setrlimit(kind, (amount if most == resource.RLIM_INFINITY else min(amount, most), most))


if __name__ == "__main__":
  _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
