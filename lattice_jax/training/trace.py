"""A `jax.profiler` trace of some updates of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax


class Trace:
  """Traces updates start … stop − 1 of `span` into `folder`; without a span it traces nothing."""

  def __init__(self, span: tuple[int, int] | None, folder: Path, note: Callable[[str], None]):
    self.boundaries = span or ()
    self._folder, self._note = folder, note
    self._is_running = False

  def start_or_stop(self, step: int, *, must_end: bool, drain: Callable[[], None]) -> None:
    """Starts or ends the trace if due before the update with index `step`; `drain` waits for earlier updates."""
    if not self.boundaries:
      return
    start, stop = self.boundaries
    if not self._is_running and start <= step < stop and not must_end:
      drain()
      jax.profiler.start_trace(self._folder)
      self._is_running = True
    elif self._is_running and (step >= stop or must_end):
      drain()
      self.close()
      self._note(f"trace of updates {start} to {step - 1} in {self._folder}")

  def close(self) -> None:
    """Ends the trace, also after a failure."""
    if self._is_running:
      self._is_running = False
      jax.profiler.stop_trace()
