"""How the failure of one process reaches the others: as its own sentence, within seconds.

A process that fails says so to JAX's coordination service, and a thread of every other process asks there. Without it
the others would wait in a collective until the failed process has been silent for long enough to count as dead.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

_FOLDER = "lattice_jax/failed/"
_ASK_SECONDS = 1.0
_LONGEST_ANSWER = 5.0
_LONGEST = 2000  # characters of a sentence

_stopped = threading.Event()  # set once this process ends by itself
_asking: list[threading.Thread] = []


class PeerFailure(ValueError):
  """What another process failed with; that process tells all of them itself."""


def publish(sentence: str, status: int) -> None:
  """Tells the other processes why this one ends, and with which exit status."""
  _stopped.set()
  with contextlib.suppress(Exception):  # then they learn of it when this process is silent
    _service().client.key_value_set(f"{_FOLDER}{_service().process_id}", json.dumps([sentence[:_LONGEST], status]))


def watch(end: Callable[[str, int], None]) -> None:
  """From here on the failure of another process calls `end` with (sentence, exit status), in a thread of its own."""
  _asking.append(threading.Thread(target=_ask, args=(end,), daemon=True))
  _asking[-1].start()
  atexit.register(stop_watching)


def stop_watching() -> None:
  """The failures of others no longer matter, because this process ends; call it before JAX's connection is closed."""
  _stopped.set()
  for thread in _asking:
    if thread is not threading.current_thread():
      thread.join(_LONGEST_ANSWER)  # a question to a connection that is gone would crash the process


def _ask(end: Callable[[str, int], None]) -> None:
  service = _service()
  client, own, count = service.client, service.process_id, service.num_processes
  while not _stopped.wait(_ASK_SECONDS):
    try:
      found = client.key_value_dir_get(_FOLDER)
    except Exception:
      return  # the service is gone, which JAX notices too
    failed = {int(key.rpartition("/")[2]): value for key, value in found}
    failed.pop(own, None)
    if failed and not _stopped.is_set():
      first = min(failed)
      sentence, status = json.loads(failed[first])
      if own == 0:
        time.sleep(2 * _ASK_SECONDS)  # the service runs in this process, and the others still have to ask it
      end(f"process {first} of {count}: {sentence}", status)


def own_process() -> int:
  """The number of this process, also before JAX's devices are known."""
  return _service().process_id


def _service() -> Any:
  from jax._src import distributed  # JAX has no public way to the service that it started itself

  return distributed.global_state
