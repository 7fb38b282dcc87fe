"""The compiled evaluation step and the shardings of its arrays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lattice_jax.config import ModelConfig
from lattice_jax.inference.compilation import TreeSpec, place_variables, with_shardings
from lattice_jax.inference.engine import ScoringEngine
from lattice_jax.models.decoder import Decoder, init_state
from lattice_jax.sharding import batch_sharding, replicated, state_shardings
from lattice_jax.types import Batch, abstract_segment

_LOGITS_AT_ONCE = 64  # tokens whose logits exist at a time where weights are streamed


@dataclass(frozen=True)
class EvalShapes:
  """Everything static about one compiled evaluation step."""

  batch: int
  chunk_len: int
  max_len: int
  has_answers: bool = False  # whether the data are a task, whose answers are right or wrong


def compile_evaluation(
  model: ModelConfig, shapes: EvalShapes, mesh: Mesh, variables: Any
) -> tuple[Callable[..., Any], Callable[[], Any]]:
  """The compiled step (variables, state, batch) → (state, (nll_BT, right_BT, metrics)) and the maker of an empty state.

  nll_BT: fp32 nats of all rows, replicated on every device, also where there is no target. right_BT: whether the target
  is the most likely token; None unless `shapes.has_answers`. The step takes over (donates) the state.
  Programs are compiled ahead of time and cached: a run that evaluates often compiles once, and no call can retrace.
  """
  return _compile(model, shapes, mesh, TreeSpec.of(variables))


@contextlib.contextmanager
def open_evaluation(
  model: ModelConfig, shapes: EvalShapes, mesh: Mesh, variables: Any,
) -> Iterator[tuple[Callable[[Any, Batch], Any], Callable[[], Any]]]:
  """As `compile_evaluation`, with the variables already given; params may be an engine, on whose mesh it is."""
  if not isinstance(variables["params"], ScoringEngine):
    variables = place_variables(variables, mesh)
    step, make_state = compile_evaluation(model, shapes, mesh, variables)
    yield functools.partial(step, variables), make_state
    return
  evaluation = variables["params"].open_evaluation(
    model, batch=shapes.batch, length=shapes.chunk_len, max_len=shapes.max_len,
    score=_streamed_score(shapes.has_answers))

  def streamed_step(state: Any, batch: Batch) -> Any:
    state, scored = evaluation.step(state, batch.tokens_BT, batch.targets_BT, batch.segment)
    return state, (*scored, {})

  try:
    yield streamed_step, evaluation.start
  finally:
    evaluation.close()


def _abstract_batch(shapes: EvalShapes, mesh: Mesh) -> Batch:
  def rows(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shapes.batch, shapes.chunk_len), dtype, sharding=batch_sharding(mesh))

  return Batch(
    tokens_BT=rows(jnp.int32), targets_BT=rows(jnp.int32), weights_BT=rows(jnp.float32),
    segment=abstract_segment(rows),
    sequence=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh)))


@functools.lru_cache(maxsize=8)
def _compile(
  model: ModelConfig, shapes: EvalShapes, mesh: Mesh, variables: TreeSpec
) -> tuple[Callable[..., Any], Callable[[], Any]]:
  def make_state() -> Any:
    return init_state(model, shapes.batch, shapes.max_len)

  def step(variables: Any, state: Any, batch: Batch) -> Any:
    nll_BT, output = Decoder(model).apply(
      variables, batch.tokens_BT, batch.targets_BT, state, batch.segment, method=Decoder.score)
    right_BT = _is_likeliest(model, variables, output.features_BTD, batch.targets_BT) if shapes.has_answers else None
    return output.state, (nll_BT.astype(jnp.float32), right_BT, output.metrics)

  abstract_state = jax.eval_shape(make_state)
  shardings = state_shardings(abstract_state, mesh)
  abstract_state = with_shardings(abstract_state, shardings)
  step_jit = jax.jit(step, donate_argnums=1, out_shardings=(shardings, replicated(mesh)))
  with jax.set_mesh(mesh):  # where tokens are split, ops ask it how
    compiled_step = step_jit.lower(variables.tree(), abstract_state, _abstract_batch(shapes, mesh)).compile()
  return compiled_step, jax.jit(make_state, out_shardings=shardings).lower().compile()


@functools.cache
def _streamed_score(has_answers: bool) -> Callable[[ModelConfig, Any, jax.Array, jax.Array], Any]:
  """(nll_BT, right_BT or None) of features and targets; the same function each time, by which programs are kept.

  From the logits of few tokens at a time, so that codes of the head never become floats as a whole.
  """
  def score(
    model: ModelConfig, variables: Any, features_BTD: jax.Array, targets_BT: jax.Array,
  ) -> tuple[jax.Array, jax.Array | None]:
    def score(column: tuple[jax.Array, jax.Array]) -> jax.Array:
      features_BD, targets_B = column
      logits_B1A = Decoder(model).apply(variables, features_BD[:, None], method=Decoder.logits)
      return -jnp.take_along_axis(jax.nn.log_softmax(logits_B1A[:, 0]), targets_B[:, None], axis=1)[:, 0]

    rows = max(1, min(model.xent_chunk, _LOGITS_AT_ONCE) // targets_BT.shape[0])
    nll_BT = jax.lax.map(score, (jnp.moveaxis(features_BTD, 1, 0), targets_BT.T), batch_size=rows).T
    return nll_BT, _is_likeliest(model, variables, features_BTD, targets_BT) if has_answers else None

  return score


def _is_likeliest(model: ModelConfig, variables: Any, features_BTD: jax.Array, targets_BT: jax.Array) -> jax.Array:
  """Whether each target has the largest logit; only the logits of `model.xent_chunk` tokens exist at a time."""
  def check(column: tuple[jax.Array, jax.Array]) -> jax.Array:
    features_BD, targets_B = column
    logits_BTA = Decoder(model).apply(variables, features_BD[:, None], method=Decoder.logits)
    return logits_BTA[:, 0].argmax(-1) == targets_B

  columns = jnp.moveaxis(features_BTD, 1, 0), targets_BT.T
  return jax.lax.map(check, columns, batch_size=max(1, model.xent_chunk // targets_BT.shape[0])).T
