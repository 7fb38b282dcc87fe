"""Rows of text that a model reads: chunks of a prompt, then token by token, each a call of one compiled program.

Generation, evaluation under a cache policy and serving all read through a `Session`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lattice_jax.cache.convert import compress
from lattice_jax.cache.kv_cache import KVCache, caches_of
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.config_checks import check_protected
from lattice_jax.inference.compilation import TreeSpec, mesh_of, place_variables, with_shardings
from lattice_jax.inference.prompts import Spans, prompt_chunk, protected_rows
from lattice_jax.marks import Marker, last_read, mark_tokens, nothing_read
from lattice_jax.models.decoder import Decoder, init_state, needs_token_cache, protected_room
from lattice_jax.sharding import replicated, state_shardings, unbox
from lattice_jax.types import Segment, abstract_segment, make_segment


@flax.struct.dataclass
class SessionState:
  """What has been read. logits_BA: what follows each row's last token. position_B: the place of the next token.

  previous_BW: the last ids, which the marker of the next token looks at; None without a marker.
  """

  logits_BA: jax.Array
  position_B: jax.Array
  memory: Any
  previous_BW: jax.Array | None = None


class Session:
  """`batch` rows of text under one model. `state` is what they have read; each call gives the old one away.

  Programs are compiled ahead and kept, so no call can retrace. max_len: tokens that a token cache has room for; 0 where
  no memory needs one. chunk_len: tokens of a prompt that are read in one call. marker: says which tokens are anchors;
  none are without one.
  """

  def __init__(
    self, model: ModelConfig, variables: Any, *, batch: int, max_len: int, chunk_len: int = 128,
    state: SessionState | None = None, marker: Marker | None = None):
    """Starts from an empty memory where no `state` is given; one that is given was read with the same marker.

    Raises:
      ValueError: the cache keeps marked tokens, and no marker marks any; or the marker protects more tokens of a text
        of max_len tokens than a memory has room for.
    """
    check_marker(model, marker, max_len)
    self.model, self.batch, self.max_len, self.chunk_len = model, batch, max_len, chunk_len
    self.mesh = mesh_of(unbox(variables))
    self.variables = place_variables(variables, self.mesh)
    self.marker = place_variables(marker, self.mesh)
    self._key = model, batch, max_len, self.mesh, TreeSpec.of(self.variables), TreeSpec.of(self.marker)
    self._read_token: Callable[..., SessionState] | None = None
    self._read_chunk: Callable[..., SessionState] | None = None
    if state is None:
      self._read_chunk = _compile_chunk(*self._key, chunk_len)
      self.state: SessionState = compile_start(*self._start_key)()
    else:
      self.state = jax.device_put(state, abstract_state(*self._start_key)[1])

  @property
  def _start_key(self) -> tuple[ModelConfig, int, int, Mesh, TreeSpec]:
    return *self._key[:4], self._key[-1]

  def read(self, rows: Sequence[np.ndarray], protected: Sequence[Spans] = ()) -> None:
    """Reads each row's tokens, of any number. With fewer rows than `batch`, the others read what the last one does.

    protected: of each row the spans of its tokens that no memory shall drop.

    Raises:
      ValueError: as `prompts.protected_rows`.
    """
    protected_BT = protected_rows(rows, protected, protected_room(self.model))
    rows, protected_BT = (
      [*given, *[given[-1]] * (self.batch - len(given))] if given else [] for given in (list(rows), protected_BT))
    before_B = np.asarray(self.state.position_B)
    for start in range(0, max(map(len, rows)), self.chunk_len):
      tokens_BT, segment = prompt_chunk(rows, start, self.chunk_len, protected_BT)
      self.read_call(tokens_BT, segment.replace(positions_BT=segment.positions_BT + before_B[:, None]))

  def read_call(self, tokens_BT: np.ndarray, segment: Segment) -> None:
    """Reads one chunk [batch, chunk_len] whose positions go on from what was read; it waits for no other call."""
    self._read_chunk = self._read_chunk or _compile_chunk(*self._key, self.chunk_len)
    self.state = self._read_chunk(self.variables, self.marker, *self.put((tokens_BT, segment)), self.state)

  def restart(self) -> None:
    """Forgets what was read."""
    self.state = compile_start(*self._start_key)()

  def step(self, token_B: jax.Array | np.ndarray) -> None:
    """Reads one more token of every row."""
    self._read_token = self._read_token or _compile_token(*self._key)
    self.state = self._read_token(self.variables, self.marker, self.put(token_B), self.state)

  def fork(self) -> Session:
    """A session that goes on from here by itself."""
    other = copy.copy(self)
    other.state = jax.tree.map(jnp.copy, self.state)
    return other

  def compress(self, cache: CacheConfig, max_len: int | None = None) -> Session:
    """A session that goes on with the tokens that `cache` keeps; this one stays as it is.

    Raises:
      ValueError: as `cache.convert.compress`, which this session's model must have made the records for.
    """
    model, max_len = replace(self.model, cache=cache), self.max_len if max_len is None else max_len
    return self.go_on(model, compress(model, self.state.memory, max_len), max_len)

  def go_on(self, model: ModelConfig, memory: Any, max_len: int) -> Session:
    """A session of another model that has read the same, as `memory`, with room for `max_len` tokens."""
    # arrays that are in both are this session's own, which it will give away
    state = jax.tree.map(jnp.copy, self.state.replace(memory=memory))
    chunk_len = min(self.chunk_len, model.cache.call_len or self.chunk_len)
    return Session(
      model, self.variables, batch=self.batch, max_len=max_len, chunk_len=chunk_len, state=state, marker=self.marker)

  def close(self) -> None:
    """Ends what runs beside the session, which may be nothing."""

  @property
  def caches(self) -> list[KVCache]:
    """The token caches, one stack of layers for each attention block of the pattern."""
    return [*caches_of(self.state.memory).values()]

  @property
  def chunk_hlo(self) -> str:
    """Text of the compiled program that reads a chunk."""
    self._read_chunk = self._read_chunk or _compile_chunk(*self._key, self.chunk_len)
    return self._read_chunk.as_text()

  def put(self, tree: Any) -> Any:
    """The arrays whole on every device, as the programs take them."""
    return jax.device_put(tree, replicated(self.mesh))


def check_marker(model: ModelConfig, marker: Marker | None, max_len: int) -> None:
  """Raises ValueError as the constructor of a `Session`."""
  if marker is None and make_policy(model.cache).records_marks and needs_token_cache(model):
    raise ValueError(
      f"a cache keeps the tokens that are marked as separators, and nothing marks them: model.cache.policy="
      f"{model.cache.policy!r} needs a Session with a marker, such as data.separators.marker_of makes.")
  if marker is not None:
    check_protected(model, copies=marker.copies, apart=marker.apart, length=max_len)


def read_token(
  model: ModelConfig, variables: Any, marker: Marker | None, token_B: jax.Array, is_read_B: jax.Array,
  state: SessionState,
) -> SessionState:
  """The decode step. Rows where `is_read_B` is false keep their memory, and their logits mean nothing."""
  decoder, segment = Decoder(model), make_segment(state.position_B[:, None], valid_BT=is_read_B[:, None])
  segment, previous_BW = marked(marker, token_B[:, None], segment, state.previous_BW)
  output = decoder.apply(variables, token_B[:, None], state.memory, segment)
  logits_BA = decoder.apply(variables, output.features_BTD, method=Decoder.logits)[:, 0]
  return SessionState(
    logits_BA=logits_BA, position_B=state.position_B + is_read_B, memory=output.state, previous_BW=previous_BW)


def read_chunk(
  model: ModelConfig, variables: Any, marker: Marker | None, tokens_BT: jax.Array, segment: Segment,
  state: SessionState,
) -> SessionState:
  """Reads the valid tokens of every row, which may be none."""
  decoder = Decoder(model)
  segment, previous_BW = marked(marker, tokens_BT, segment, state.previous_BW)
  output = decoder.apply(variables, tokens_BT, state.memory, segment)
  num_valid_B = segment.valid_BT.sum(axis=1, dtype=jnp.int32)
  last_B1D = jnp.take_along_axis(output.features_BTD, jnp.maximum(num_valid_B - 1, 0)[:, None, None], axis=1)
  logits_BA = decoder.apply(variables, last_B1D, method=Decoder.logits)[:, 0]
  return SessionState(
    logits_BA=jnp.where(num_valid_B[:, None] > 0, logits_BA, state.logits_BA),
    position_B=state.position_B + num_valid_B, memory=output.state, previous_BW=previous_BW)


def marked(
  marker: Marker | None, tokens_BT: jax.Array, segment: Segment, previous_BW: jax.Array | None,
) -> tuple[Segment, jax.Array | None]:
  """(the segment with the marks of its valid tokens, the last ids once these are read); as it was without a marker."""
  if marker is None:
    return segment, previous_BW
  marks_BT = jnp.where(segment.valid_BT, mark_tokens(marker, tokens_BT, previous_BW, segment.positions_BT), 0)
  num_valid_B = segment.valid_BT.sum(axis=1, dtype=jnp.int32)
  return segment.replace(marks_BT=segment.marks_BT | marks_BT), last_read(previous_BW, tokens_BT, num_valid_B)


def abstract_state(
  model: ModelConfig, batch: int, max_len: int, mesh: Mesh, marker: TreeSpec) -> tuple[SessionState, SessionState]:
  """(shapes that say where they lie, shardings)."""
  shapes = jax.eval_shape(functools.partial(start_state, model, batch, max_len, marker.tree()))
  shardings = jax.tree.map(lambda _: replicated(mesh), shapes).replace(memory=state_shardings(shapes.memory, mesh))
  return with_shardings(shapes, shardings), shardings


def start_state(model: ModelConfig, batch: int, max_len: int, marker: Marker | None) -> SessionState:
  """Rows that have read nothing. marker: only its look-behind is read, so its table may be a shape."""
  return SessionState(
    logits_BA=jnp.zeros((batch, model.vocab), jnp.float32), position_B=jnp.zeros((batch,), jnp.int32),
    memory=init_state(model, batch, max_len),
    previous_BW=None if marker is None else jnp.asarray(nothing_read(marker, batch)))


@functools.lru_cache(maxsize=8)
def compile_start(
  model: ModelConfig, batch: int, max_len: int, mesh: Mesh, marker: TreeSpec) -> Callable[[], SessionState]:
  """The program that makes the state of rows that have read nothing."""
  _, shardings = abstract_state(model, batch, max_len, mesh, marker)
  start = functools.partial(start_state, model, batch, max_len, marker.tree())
  return jax.jit(start, out_shardings=shardings).lower().compile()


@functools.lru_cache(maxsize=8)
def _compile_chunk(
  model: ModelConfig, batch: int, max_len: int, mesh: Mesh, variables: TreeSpec, marker: TreeSpec, chunk_len: int,
) -> Callable[..., SessionState]:
  state, shardings = abstract_state(model, batch, max_len, mesh, marker)

  def rows(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, chunk_len), dtype, sharding=replicated(mesh))

  program = jax.jit(functools.partial(read_chunk, model), donate_argnums=4, out_shardings=shardings)
  return program.lower(variables.tree(), marker.tree(), rows(jnp.int32), abstract_segment(rows), state).compile()


@functools.lru_cache(maxsize=32)  # one for each cache that an evaluation compares
def _compile_token(
  model: ModelConfig, batch: int, max_len: int, mesh: Mesh, variables: TreeSpec, marker: TreeSpec,
) -> Callable[..., SessionState]:
  state, shardings = abstract_state(model, batch, max_len, mesh, marker)

  def program(variables: Any, marker: Marker | None, token_B: jax.Array, state: SessionState) -> SessionState:
    return read_token(model, variables, marker, token_B, jnp.ones((batch,), bool), state)

  token_B = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=replicated(mesh))
  return jax.jit(program, donate_argnums=3, out_shardings=shardings).lower(
    variables.tree(), marker.tree(), token_B, state).compile()
