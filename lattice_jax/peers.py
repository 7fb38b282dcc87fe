"""One of several processes dies: what the others say of it, and how they end.

JAX's coordination service notices that a process is gone. It writes pages on the standard error of the others and
aborts them, from a thread that Python does not know. Here those pages are read instead of shown, and the abort becomes
an exit with one sentence.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Seconds without a sign of life after which a process counts as dead. JAX's default is 100, for which everybody would
# wait; the signs are sent by a thread of their own every few seconds, however long a compilation or a read takes.
HEARTBEAT_TIMEOUT = 8
HEARTBEAT_VARIABLE = "LATTICE_JAX_HEARTBEAT"  # other seconds, where a network or a host is away for longer at times
_READING_SECONDS = 0.2  # for what was written before an abort

_SERVICE = re.compile(r"coordination[_ ]service|JAX distributed service")
_SILENT = re.compile(r"stopped sending heartbeats\):\n((?:\S*\d+\n)+)")
_BROKEN = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): ")
_NO_LEADER = "Failed to send RPC to coordination service"

_kept: list[Any] = []  # what must live as long as the process


def heartbeat_timeout() -> int:
  """Seconds, which the environment variable may change."""
  return int(os.environ[HEARTBEAT_VARIABLE]) if HEARTBEAT_VARIABLE in os.environ else HEARTBEAT_TIMEOUT


def tell_of_the_dead(leave: Callable[[str], None]) -> None:
  """From here on an abort for a dead process calls `leave` with a sentence; call it before the processes meet."""
  shown = os.dup(2)
  sys.stderr = open(shown, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
  reading, writing = os.pipe()
  os.dup2(writing, 2)
  os.close(writing)
  said: list[str] = []
  threading.Thread(target=_read, args=(reading, said), daemon=True).start()

  def on_abort(number: int) -> None:
    del number
    time.sleep(_READING_SECONDS)
    text = "".join(said)
    sentence = sentence_of(text)
    if sentence is not None:
      leave(sentence)
    sys.stderr.write(text)  # an abort for another reason goes on where this returns

  # a handler of Python's would wait for the main thread, and the abort does not
  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
  _kept.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def sentence_of(text: str) -> str | None:
  """What the service's pages say in one sentence; None where they are of something else."""
  silent = _SILENT.search(text)
  if silent:
    numbers = re.findall(r"(\d+)\n", silent[1])
  elif _NO_LEADER in text:
    numbers = ["0"]  # the service runs in this process
  else:
    return None
  who = f"process {numbers[0]} has" if len(numbers) == 1 else f"processes {', '.join(numbers)} have"
  return (
    f"{who} ended or cannot be reached any more; the last words there tell why. Start the same command on every host "
    "again: it goes on from the newest checkpoint.")


def wait_for_news(error: BaseException | None) -> None:
  """Where processes could not talk, one may have died; within this time the service says which, and aborts this one."""
  while error is not None:
    if _BROKEN.match(str(error)):
      time.sleep(2 * heartbeat_timeout())
      return
    error = error.__cause__ or error.__context__


def _read(reading: int, said: list[str]) -> None:
  """Shows what native libraries write, up to the service's first line; that and the rest it keeps in `said`."""
  with open(reading, encoding="utf-8", errors="replace") as lines:
    for line in lines:
      if said or _SERVICE.search(line):
        said.append(line)
      else:
        sys.stderr.write(line)
