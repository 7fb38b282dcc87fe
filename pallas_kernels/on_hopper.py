"""The kernels for Hopper GPUs, imported where one is used: their library takes half a second to come."""

from __future__ import annotations

from types import ModuleType


def flash() -> ModuleType:
  """The module `flash_hopper`."""
  from pallas_kernels import flash_hopper

  return flash_hopper


def search() -> ModuleType:
  """The module `search_hopper`."""
  from pallas_kernels import search_hopper

  return search_hopper


def delta() -> ModuleType:
  """The module `delta_hopper`."""
  from pallas_kernels import delta_hopper

  return delta_hopper
