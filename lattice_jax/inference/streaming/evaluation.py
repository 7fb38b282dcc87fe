"""Passes over layers from a `Source` whose end is scored by the tokens that really follow."""

from __future__ import annotations

from typing import Any

import jax

from lattice_jax.config import ModelConfig
from lattice_jax.inference.compilation import TreeSpec
from lattice_jax.inference.session import SessionState, compile_start
from lattice_jax.inference.streaming.programs import Score, compile_programs
from lattice_jax.inference.streaming.session import STATE, WORK, state_bytes
from lattice_jax.inference.streaming.source import Source
from lattice_jax.types import Segment

_NO_MARKER = TreeSpec.of(None)  # the marks stand in the segment


class StreamedEvaluation:
  """`batch` rows, `length` tokens of each in a pass."""

  def __init__(
    self, model: ModelConfig, source: Source, *, batch: int, length: int, max_len: int, score: Score):
    """max_len, score: see `init_state` and `compile_programs`.

    Raises:
      ValueError: the budget is too small.
    """
    self._model, self._source = model, source
    self._programs = compile_programs(
      model, source, batch=batch, max_len=max_len, length=length, marker=_NO_MARKER, score=score)
    self._start = compile_start(model, batch, max_len, source.mesh, _NO_MARKER)
    source.reserve(WORK, self._programs.work_bytes, shared=True)
    # an empty state is made before the one that was read is given up
    source.reserve(STATE, 2 * state_bytes(source, model, batch, max_len, None))
    source.check()

  def start(self) -> SessionState:
    """Rows that have read nothing."""
    return self._start()

  def step(
    self, state: SessionState, tokens_BT: jax.Array, targets_BT: jax.Array, segment: Segment,
  ) -> tuple[SessionState, Any]:
    """(the state behind the tokens, what `score` says of them); takes the state over."""
    return self._programs.read(self._model, self._source, None, tokens_BT, segment, state, targets_BT)

  def close(self) -> None:
    """Ends the thread that reads."""
    self._source.close()
