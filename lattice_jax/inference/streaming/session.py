"""A session whose layers come from a `Source`: the same calls, states and caches as one whose weights are arrays."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lattice_jax.cache.convert import compress
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.inference.compilation import TreeSpec, place_variables
from lattice_jax.inference.session import Session, SessionState, abstract_state, check_marker, compile_start
from lattice_jax.inference.streaming.programs import Programs, compile_programs
from lattice_jax.inference.streaming.source import Source
from lattice_jax.marks import Marker
from lattice_jax.sharding import replicated, tree_bytes
from lattice_jax.types import Segment, make_segment

WORK, STATE = "temporary arrays", "the memory's state"


class StreamedSession(Session):
  """Forks, and what `compress` returns, read through the same source: one pass at a time, and one close for all."""

  def __init__(
    self, model: ModelConfig, source: Source, *, batch: int, max_len: int, chunk_len: int = 128,
    state: SessionState | None = None, marker: Marker | None = None):
    """As `Session`. An empty state and what programs need are counted in the source's budget.

    Raises:
      ValueError: as `Session`, or the budget has no room for them.
    """
    check_marker(model, marker, max_len)
    self.model, self.batch, self.max_len, self.chunk_len = model, batch, max_len, chunk_len
    self.mesh, self.source = source.mesh, source
    self.marker = place_variables(marker, self.mesh)
    self._compile = functools.partial(
      compile_programs, model, source, batch=batch, max_len=max_len, marker=TreeSpec.of(self.marker))
    self._programs: dict[int, Programs] = {}
    self._programs_for(1)
    if state is None:
      self._programs_for(chunk_len)
      self._count_state()
      self.state = compile_start(*self._start_key)()
    else:
      self.state = jax.device_put(state, abstract_state(*self._start_key)[1])

  @property
  def _start_key(self) -> tuple[ModelConfig, int, int, Mesh, TreeSpec]:
    return self.model, self.batch, self.max_len, self.mesh, TreeSpec.of(self.marker)

  @property
  def variables(self) -> dict[str, Any]:
    """The parameters outside the blocks, once they have been read."""
    return {"params": self.source.outside(), "buffers": {}}

  def read_call(self, tokens_BT: np.ndarray, segment: Segment) -> None:
    self._read(self._programs_for(self.chunk_len), *self.put((tokens_BT, segment)))

  def step(self, token_B: jax.Array | np.ndarray) -> None:
    place = _compile_place(self.batch, self.mesh)
    self._read(self._programs_for(1), *place(self.put(token_B), self.state.position_B))

  def _read(self, programs: Programs, tokens_BT: jax.Array, segment: Segment) -> None:
    self.state = programs.read(self.model, self.source, self.marker, tokens_BT, segment, self.state)

  def fork(self) -> StreamedSession:
    other = copy.copy(self)
    other._count_state()
    other.state = jax.tree.map(jnp.copy, self.state)
    return other

  def compress(self, cache: CacheConfig, max_len: int | None = None) -> StreamedSession:
    model, max_len = replace(self.model, cache=cache), self.max_len if max_len is None else max_len
    reserve_compressed(self.source, model, self.batch, max_len, self.marker)
    memory = compress(model, self.state.memory, max_len)
    # arrays that the policy leaves as they were are this session's own, which it will give away
    state = jax.tree.map(jnp.copy, self.state.replace(memory=memory))
    chunk_len = min(self.chunk_len, cache.call_len or self.chunk_len)
    return StreamedSession(
      model, self.source, batch=self.batch, max_len=max_len, chunk_len=chunk_len, state=state, marker=self.marker)

  def close(self) -> None:
    """Ends the thread that reads; the session, and those that share its source, can read no more."""
    self.source.close()

  @property
  def chunk_hlo(self) -> str:
    """Text of the compiled program of the first layer's step on a chunk."""
    return self._programs_for(self.chunk_len).layers[0].as_text()

  def _programs_for(self, length: int) -> Programs:
    if length not in self._programs:
      self._programs[length] = self._compile(length=length)
      self.source.reserve(WORK, self._programs[length].work_bytes, shared=True)
    return self._programs[length]

  def _count_state(self) -> None:
    num_bytes = state_bytes(self.source, self.model, self.batch, self.max_len, self.marker)
    self.source.reserve(STATE, num_bytes)
    weakref.finalize(self, self.source.give_back, STATE, num_bytes)


def state_bytes(source: Source, model: ModelConfig, batch: int, max_len: int, marker: Marker | None) -> int:
  """Of what a session has read."""
  return tree_bytes(abstract_state(model, batch, max_len, source.mesh, TreeSpec.of(marker))[0])


def reserve_compressed(source: Source, model: ModelConfig, batch: int, max_len: int, marker: Marker | None) -> None:
  """Counts the state that `compress` makes, and the copy that it makes of it on the way; once for each cache.

  Raises:
    ValueError: the budget has no room for it.
  """
  num_bytes = 2 * state_bytes(source, model, batch, max_len, marker)
  source.reserve(f"the state under the cache policy {model.cache.policy!r}", num_bytes, shared=True)


@functools.lru_cache(maxsize=8)
def _compile_place(batch: int, mesh: Mesh) -> Callable[..., Any]:
  """(token_B, position_B) → (tokens_BT, segment)."""
  row = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=replicated(mesh))
  place = jax.jit(
    lambda token_B, position_B: (token_B[:, None], make_segment(position_B[:, None])), out_shardings=replicated(mesh))
  return place.lower(row, row).compile()
