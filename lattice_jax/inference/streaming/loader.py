"""The thread that reads layers ahead of the one that is computed."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lattice_jax.inference.streaming.budget import Plan
from lattice_jax.inference.streaming.layers import LayerParts, check_finite, read_parts
from lattice_jax.inference.streaming.tiers import Computed, Slot, Tier
from lattice_jax.shown import reason_of

OUTSIDE = -1  # the number of what lies outside the layers, which is read before them and stays


@dataclass
class Counters:
  """What was asked of the loader, since it began.

  hits: layers that were in memory since an earlier pass. misses: layers that were read for this one. bytes_read: copied
  to where programs read them. stalls, stall_seconds: how often and how long a layer was waited for.
  """

  hits: int = 0
  misses: int = 0
  bytes_read: int = 0
  stalls: int = 0
  stall_seconds: float = 0.0


class Loader:
  """Reads the layers again and again in their order: a pinned one once, the others into the buffers of the plan.

  One caller takes them in the same order: `acquire`, then `release`. drop_pages: take what was read out of the page
  cache, so that every read is one of the disk, as where the file is larger than that.
  """

  def __init__(
    self, layers: Sequence[LayerParts], outside: LayerParts, plan: Plan, tier: Tier, counters: Counters, *,
    read: Callable[[LayerParts, list[np.ndarray], Callable[[], bool]], None] = read_parts, drop_pages: bool = False):
    self.counters = counters
    self._layers, self._outside, self._plan, self._tier = list(layers), outside, plan, tier
    self._read, self._drop_pages = read, drop_pages
    self._free = collections.deque()
    self._ready: dict[int, Slot] = {}
    self._seen: set[str] = set()
    self._error: BaseException | None = None
    self._is_closed = False
    self._condition = threading.Condition()
    self._thread = threading.Thread(target=self._run, name="layer loader", daemon=True)
    self._thread.start()

  def acquire(self, index: int) -> Slot:
    """The slot that holds a layer, once it does.

    Raises:
      ValueError: the layer could not be read, or the loader is closed.
    """
    with self._condition:
      is_there = index in self._ready
      if not is_there:
        start = time.perf_counter()
        self._condition.wait_for(lambda: index in self._ready or self._error is not None or self._is_closed)
        self.counters.stalls += 1
        self.counters.stall_seconds += time.perf_counter() - start
      if self._error is not None:
        raise ValueError(str(self._error)) from self._error
      if self._is_closed:
        raise ValueError("the weights are streamed no longer: this session was closed or interrupted; open another.")
      slot = self._ready[index]
      if index != OUTSIDE:
        self._count(index, slot)
      return slot

  def _count(self, index: int, slot: Slot) -> None:
    if slot.is_old:
      self.counters.hits += 1
    else:
      self.counters.misses += 1
    if index in self._plan.pinned:
      slot.is_old = True

  def release(self, index: int, until: Computed) -> None:
    """Gives the layer's buffer back, to be filled once `until` has been computed."""
    if index in self._plan.pinned:
      return
    with self._condition:
      slot = self._ready.pop(index)
      slot.until = until
      self._free.append(slot)
      self._condition.notify_all()

  def close(self) -> None:
    """Ends the thread, at the latest when the array that it copies is done. May be called again, and while it reads."""
    with self._condition:
      self._is_closed = True
      self._condition.notify_all()
    if threading.current_thread() is not self._thread:
      self._thread.join()
    self._ready.clear()
    self._free.clear()

  @property
  def is_closed(self) -> bool:
    return self._is_closed

  def _run(self) -> None:
    index, order = OUTSIDE, self._order()
    following = next(order)
    try:
      self._load(OUTSIDE, self._tier.make_slot(self._outside.nbytes, self._outside.name), following)
      for _ in range(self._plan.num_buffers):
        self._free.append(self._tier.make_slot(self._plan.buffer_bytes, "a buffer"))
      while following is not None:
        index, following = following, next(order, None)
        slot = self._slot_for(index)
        if slot is None:
          return
        self._load(index, slot, following)
    except ValueError as error:
      self._fail(error)
    except BaseException as error:  # whatever it is, the caller waits for it
      layer = self._layer(index)
      path = layer.parts[0].tensor.file.path
      failure = ValueError(f"{layer.name} of {path} could not be read ({reason_of(error)}); get the file again.")
      failure.__cause__ = error
      self._fail(failure)

  def _layer(self, index: int) -> LayerParts:
    return self._outside if index == OUTSIDE else self._layers[index]

  def _order(self) -> Iterator[int]:
    """Layers in the order in which they are read: all once, then those that do not stay, without end."""
    everything = range(len(self._layers))
    yield from everything
    streamed = [index for index in everything if index not in self._plan.pinned]
    if streamed:
      yield from itertools.cycle(streamed)

  def _slot_for(self, index: int) -> Slot | None:
    """None once the loader is closed."""
    if index in self._plan.pinned:
      return None if self._is_closed else self._tier.make_slot(self._layers[index].nbytes, self._layers[index].name)
    with self._condition:
      self._condition.wait_for(lambda: self._free or self._is_closed)
      return None if self._is_closed else self._free.popleft()

  def _load(self, index: int, slot: Slot, following: int | None) -> None:
    """Fills the slot with a layer, while the system begins to read the one that follows.

    It reads ahead by itself, and half as fast again, of what is read by plain calls.
    """
    layer, again = self._layer(index), index != OUTSIDE and index not in self._plan.pinned
    for one in (layer, *([] if following is None else [self._layers[following]])):
      for file, start, stop in one.mapped:
        file.will_need(start, stop)
    self._tier.fill(slot, layer, self._read_layer, again=again)
    self.counters.bytes_read += layer.file_bytes
    with self._condition:
      if not self._is_closed:
        self._ready[index] = slot
        self._condition.notify_all()

  def _read_layer(self, layer: LayerParts, outs: list[np.ndarray]) -> None:
    self._read(layer, outs, lambda: self._is_closed)
    if self._is_closed:
      return
    for file, start, stop in layer.spans:
      (file.drop if self._drop_pages else file.release)(start, stop)
    if layer.name not in self._seen:
      check_finite(layer, outs)
      self._seen.add(layer.name)

  def _fail(self, error: ValueError) -> None:
    with self._condition:
      self._error = error
      self._condition.notify_all()
