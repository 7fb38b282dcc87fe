"""What stands behind a text that is drawn: sessions that read, and programs that draw, over some form of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from lattice_jax.config import ModelConfig
from lattice_jax.inference.blocks import compile_block
from lattice_jax.inference.sampling import Sampling
from lattice_jax.inference.session import Session
from lattice_jax.marks import Marker


@runtime_checkable
class Engine(Protocol):
  """open_session: an empty `Session`. compile_block: see `blocks.compile_block`."""

  def open_session(
    self, model: ModelConfig, *, batch: int, max_len: int, chunk_len: int, marker: Marker | None = None) -> Session: ...

  def compile_block(
    self, model: ModelConfig, sampling: Sampling, block_len: int, max_len: int, session: Session,
  ) -> Callable[..., Any]: ...


@runtime_checkable
class ScoringEngine(Protocol):
  """An engine that also reads known tokens. open_evaluation: what makes an empty state, steps by calls of `length`
  tokens, has `score` score what follows each, and is closed; see `streaming.evaluation.StreamedEvaluation`.
  """

  def open_evaluation(
    self, model: ModelConfig, *, batch: int, length: int, max_len: int, score: Callable[..., Any]) -> Any: ...


@dataclass(frozen=True, eq=False)
class ResidentWeights:
  """A decoder's variables, all of them in the memory of the devices."""

  variables: Any

  def open_session(
    self, model: ModelConfig, *, batch: int, max_len: int, chunk_len: int, marker: Marker | None = None) -> Session:
    return Session(model, self.variables, batch=batch, max_len=max_len, chunk_len=chunk_len, marker=marker)

  def compile_block(
    self, model: ModelConfig, sampling: Sampling, block_len: int, max_len: int, session: Session) -> Callable[..., Any]:
    return compile_block(model, sampling, block_len, max_len, session)


def engine_of(variables: Any) -> Engine:
  """An engine as it is; a tree of arrays as weights that are in memory."""
  return variables if isinstance(variables, Engine) else ResidentWeights(variables)
