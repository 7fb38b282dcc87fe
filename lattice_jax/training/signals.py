"""SIGTERM and Ctrl-C ask a run to stop at its next boundary; a second Ctrl-C aborts it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lattice_jax.runtime import leave

_HEARING_SECONDS = 0.5  # for the main thread to end in an orderly way


class StopRequest:
  """`received` is the signal that reached this process, `number` the one that all processes have agreed on; 0 = none.

  figures_PF: what each process said of itself when they last agreed.

  Only the handler writes `received` and only `is_agreed` writes `number`, as a signal may come during the agreement.
  """

  received: int = 0
  number: int = 0
  figures_PF: np.ndarray = np.zeros((1, 0), np.float32)

  @property
  def name(self) -> str:
    return signal.Signals(self.number).name

  def is_agreed(self, *figures: float) -> bool:
    """Whether any process has received a signal; all processes must call this equally often.

    Their figures go the same way and are then in `figures_PF`.
    """
    gathered_PF = own_1F = np.array([[self.received, *figures]], np.float32)
    if jax.process_count() > 1:
      gathered_PF = multihost_utils.process_allgather(own_1F[0])
    self.number, self.figures_PF = int(gathered_PF[:, 0].max()), gathered_PF[:, 1:]
    return self.number != 0


@contextlib.contextmanager
def stop_request(answer: Callable[[str], None]) -> Iterator[StopRequest]:
  """Collects the signals that come while the block runs; outside the main thread there are none.

  Python runs a signal handler only when its main thread returns from native code, such as a compilation of minutes. A
  separate thread notices at once, calls `answer` with the name of the first signal, and ends the program at a second
  Ctrl-C.
  """
  request, is_aborting = StopRequest(), threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return

  def remember(number: int, frame: Any) -> None:
    del frame
    if number == signal.SIGINT and request.received == signal.SIGINT:
      is_aborting.set()
      raise KeyboardInterrupt
    request.received = number

  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  answering = threading.Thread(target=_answer, args=(reading, answer, is_aborting), daemon=True)
  answering.start()
  previous = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
  previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
  try:
    yield request
  finally:
    signal.set_wakeup_fd(previous_fd)
    for number, handler in previous.items():
      signal.signal(number, handler)
    os.close(writing)
    answering.join()


def _answer(reading: int, answer: Callable[[str], None], is_aborting: threading.Event) -> None:
  received: list[int] = []
  with open(reading, "rb", buffering=0) as numbers:
    while byte := numbers.read(1):
      if byte[0] not in (signal.SIGTERM, signal.SIGINT):
        continue
      is_second = byte[0] == signal.SIGINT and signal.SIGINT in received
      if is_second and not is_aborting.wait(_HEARING_SECONDS):
        leave(KeyboardInterrupt())
      if not received:
        with contextlib.suppress(ValueError):  # if it cannot be written, another place reports that
          answer(signal.Signals(byte[0]).name)
      received.append(byte[0])
