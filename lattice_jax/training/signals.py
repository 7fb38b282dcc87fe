"""SIGTERM and Ctrl-C as a request to stop at the next boundary; a second Ctrl-C aborts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class StopRequest:
  """`received` is the signal that came to this process, `number` the one that all processes know of; 0 = none.

  Only the handler writes the one and only `is_agreed` the other: a signal may come while the processes are asking.
  """

  received: int = 0
  number: int = 0

  @property
  def name(self) -> str:
    return signal.Signals(self.number).name

  def is_agreed(self) -> bool:
    """Whether any process got a signal; where there are several, every one must ask equally often."""
    self.number = self.received
    if jax.process_count() > 1:
      self.number = int(np.max(multihost_utils.process_allgather(np.int32(self.received))))
    return self.number != 0


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
  """Collects the signals while the block runs; elsewhere than in the main thread there are none to collect."""
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return

  def remember(number: int, frame: Any) -> None:
    del frame
    if number == signal.SIGINT and request.received == signal.SIGINT:
      raise KeyboardInterrupt
    request.received = number

  previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield request
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
