"""The layers of one model through one budget: what must fit beside them, the loader, and one pass after another."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.inference.streaming.budget import Plan, Pool, Sizes, make_plan
from lattice_jax.inference.streaming.layers import LayerParts, read_parts
from lattice_jax.inference.streaming.loader import OUTSIDE, Counters, Loader
from lattice_jax.inference.streaming.process_memory import ProcessMemory
from lattice_jax.inference.streaming.tiers import Tier, make_tier
from lattice_jax.inference.streaming.unpack import code_bytes, make_unpacker, unpacked_shapes
from lattice_jax.sharding import replicated


@dataclasses.dataclass(frozen=True)
class Options:
  """depth: layers that are read ahead. drop_pages: see `Loader`. make_tier, read: what tests replace."""

  depth: int = 1
  drop_pages: bool = False
  make_tier: Callable[[Pool, Any], Tier] = make_tier
  read: Callable[[LayerParts, list[np.ndarray], Callable[[], bool]], None] = read_parts


@dataclasses.dataclass(frozen=True)
class ModelFiles:
  """What is read. layers: as the files store them; apart: with a byte for each 4-bit code. outside: the rest."""

  layers: list[LayerParts]
  apart: list[LayerParts]
  outside: LayerParts


@dataclasses.dataclass
class Usage:
  """What a source has used, also when it is closed. pool: the count of all bytes. plan: None before the first pass.

  sizes: what the plan was made for, as far as it is known. memory: of the process after the pass after which most of
  it was anonymous.
  """

  pool: Pool
  sizes: Sizes | None = None
  plan: Plan | None = None
  counters: Counters = dataclasses.field(default_factory=Counters)
  memory: ProcessMemory = dataclasses.field(default_factory=ProcessMemory)


class Source:
  """Nothing is read until `outside` or `run` is first called; what a session needs must have been reserved by then.

  Its thread ends when it is closed, or nothing refers to it any more.
  """

  def __init__(self, files: ModelFiles, budget: int, mesh: Mesh, options: Options):
    self.usage, self.mesh = Usage(Pool(budget)), mesh
    self._files, self._options = files, options
    self._sharding = replicated(mesh)
    self._loader: Loader | None = None
    self._needs: dict[str, int] = {files.outside.name: files.outside.nbytes}
    self._pass = threading.Lock()

  @property
  def num_layers(self) -> int:
    return len(self._files.layers)

  @property
  def outside_shapes(self) -> Any:
    return self._files.outside.shapes(self._sharding)

  def layer_shapes(self, index: int) -> Any:
    """Of the parameters that `run` gives."""
    return unpacked_shapes(self._files.layers[index].shapes(self._sharding))

  def reserve(self, what: str, num_bytes: int, *, shared: bool = False) -> None:
    """Counts bytes of something that a session allocates itself; where `shared`, only the most under this name.

    Raises:
      ValueError: the budget has no room for them any more.
    """
    before = self._needs[what] if what in self._needs else 0
    more = max(0, num_bytes - before) if shared else num_bytes
    if self._loader is not None:
      self.usage.pool.take(more, what)
    self._needs[what] = before + more

  def give_back(self, what: str, num_bytes: int) -> None:
    """Ends a reservation that was not shared."""
    self._needs[what] -= num_bytes
    if self._loader is not None:
      self.usage.pool.give(num_bytes)

  def check(self) -> Plan:
    """How the budget will be spent. Raises ValueError if it is too small for what has been reserved."""
    files = self._files
    self.usage.sizes = Sizes(
      layers=[layer.nbytes for layer in files.layers], apart=[layer.nbytes for layer in files.apart],
      codes=code_bytes(files.layers), needs=dict(self._needs))
    return self.usage.plan or make_plan(self.usage.pool.budget, self.usage.sizes, depth=self._options.depth)

  def outside(self) -> Any:
    """The parameters outside the blocks. Raises ValueError as `Loader.acquire`."""
    return self._started().acquire(OUTSIDE).held

  def run(self, compute: Callable[[int, Any], jax.Array]) -> None:
    """One pass: calls `compute` with each layer's number and parameters.

    What it returns must be ready only when the parameters have been read. A pass that ends early ends the source too,
    because the loader is ahead of it.

    Raises:
      ValueError: as `Loader.acquire`.
    """
    with self._pass:
      loader = self._started()
      try:
        for index in range(self.num_layers):
          done = compute(index, self._unpacker.unpack(loader.acquire(index)))
          self._unpacker.reads_until(done)
          loader.release(index, done)
        self.usage.memory = self.usage.memory.most(ProcessMemory.now())
      except BaseException:
        self.close()
        raise

  def _started(self) -> Loader:
    if self._loader is None:
      usage, options, files = self.usage, self._options, self._files
      plan = usage.plan = self.check()
      for what, num_bytes in self._needs.items():
        if what != files.outside.name:  # the loader counts its own
          usage.pool.take(num_bytes, what)
      tier = options.make_tier(usage.pool, self._sharding)
      self._unpacker = make_unpacker(tier, usage.pool, plan.code_bytes, self._sharding)
      layers = [files.apart[index] if index in plan.apart else layer for index, layer in enumerate(files.layers)]
      self._loader = Loader(
        layers, files.outside, plan, tier, usage.counters, read=options.read, drop_pages=options.drop_pages)
      weakref.finalize(self, self._loader.close)
    return self._loader

  def close(self) -> None:
    """Ends the loader's thread. What was read can be read no more."""
    if self._loader is not None:
      self._loader.close()

  @property
  def is_closed(self) -> bool:
    return self._loader is not None and self._loader.is_closed
