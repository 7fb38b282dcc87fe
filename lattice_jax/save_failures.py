"""A save that fails in one of several processes is known there at once.

Orbax raises the error of a process only after all of them have met, and those that still write, or wait for the one
that failed, may take ten minutes until they give up.
"""

from __future__ import annotations

from typing import Any

import orbax.checkpoint as ocp


class ObservedHandler(ocp.StandardCheckpointHandler):
  """Writes arrays as its base does, and remembers the first error of this process in `failure`."""

  failure: Exception | None = None

  def raise_failure(self) -> None:
    if self.failure is not None:
      raise self.failure

  async def async_save(self, *args: Any, **kwargs: Any) -> list[Any]:
    futures = await super().async_save(*args, **kwargs)
    return [_Observed(future, self) for future in futures or []]


class _Observed:
  """A future of Orbax."""

  def __init__(self, future: Any, handler: ObservedHandler):
    self._future, self._handler = future, handler

  def result(self, timeout: float | None = None) -> Any:
    try:
      return self._future.result(timeout=timeout)
    except Exception as error:
      self._handler.failure = self._handler.failure or error
      raise

  def cancel(self) -> bool | None:
    return self._future.cancel()
