"""A failed write of this process is seen before the others have noticed."""

from __future__ import annotations

import asyncio
import types

import orbax.checkpoint as ocp
import pytest

from lattice_jax.save_failures import ObservedHandler


def test_the_first_error_is_remembered(monkeypatch):
  def fail(timeout=None):
    raise OSError(28, "No space left on device")

  async def write(self, *args, **kwargs):
    return [types.SimpleNamespace(result=lambda timeout=None: 1), types.SimpleNamespace(result=fail)]

  monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", write)
  handler = ObservedHandler()
  good, bad = asyncio.run(handler.async_save("folder"))
  assert good.result() == 1
  handler.raise_failure()  # nothing has failed yet
  with pytest.raises(OSError, match="No space left"):
    bad.result()
  with pytest.raises(OSError, match="No space left"):
    handler.raise_failure()
