"""Bits per byte of a split. Masks make every token count once, whatever the batch, the chunks and the mesh."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.config import DataConfig, EvalConfig, MeshConfig, ModelConfig
from lattice_jax.config_checks import check_protected
from lattice_jax.data.loader import EvalBatch, eval_batches
from lattice_jax.data.separators import marker_of
from lattice_jax.data.source import Source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.answers import AnswerTotals
from lattice_jax.evaluation.compiled import EvalShapes, open_evaluation
from lattice_jax.evaluation.position_buckets import bucket_starts
from lattice_jax.evaluation.result import EvalResult, make_result
from lattice_jax.evaluation.totals import Totals
from lattice_jax.models.decoder import fewest_tokens, needs_token_cache
from lattice_jax.sharding import make_mesh, put_batch, reader_of

MAX_TOKEN_CACHE = 65_536
_CHUNKS_IN_FLIGHT = 2  # enough to hide the reading of data, few enough to bound memory


class EvaluationStopped(Exception):
  """`should_stop` returned true before the last chunk, so there is no result."""


def evaluate_protocols(
  model: ModelConfig, params: Any, buffers: Any, source: Source, tokenizer: Tokenizer, *, eval: EvalConfig,
  data: DataConfig, mesh: Mesh | None = None, should_stop: Callable[[], bool] | None = None,
) -> list[EvalResult]:
  """Runs `evaluate` with the protocol of the config, or with cold and then carried if it is "both"."""
  protocols = ("cold", "carried") if eval.protocol == "both" else (eval.protocol,)
  return [
    evaluate(
      model, params, buffers, source, tokenizer, eval=replace(eval, protocol=protocol), data=data, mesh=mesh,
      should_stop=should_stop)
    for protocol in protocols]


def evaluate(
  model: ModelConfig, params: Any, buffers: Any, source: Source, tokenizer: Tokenizer, *, eval: EvalConfig,
  data: DataConfig, mesh: Mesh | None = None, should_stop: Callable[[], bool] | None = None,
) -> EvalResult:
  """Computes the loss over the whole split.

  cold: every window of `seq_len` tokens starts with an empty memory (the papers' protocol). carried: whole documents
  are read and the memory is carried from chunk to chunk, so that the result does not depend on `seq_len`.

  `source` is the loaded split; `eval.split` is not read. Parameters that lie on `mesh` keep their sharding; others are
  copied to every device; a `StreamedModel` in their place, on whose mesh it must be, streams them. Every process calls
  `should_stop` before every chunk; it must answer all of them the same.

  Raises:
    ValueError: the protocol does not fit the model, the windows do not fit the task, or a memory lacks room for the
      protected tokens of a document.
    EvaluationStopped: `should_stop` returned true.
  """
  seq_len = eval.seq_len or data.seq_len
  lengths = np.diff(source.offsets)
  longest = int(lengths.max()) if eval.protocol == "carried" else min(seq_len, int(lengths.max()))
  chunk_len = min(eval.chunk_len or seq_len, seq_len, longest)
  host, num_hosts = reader_of(mesh) if mesh else (0, 1)
  mesh = mesh or make_mesh(MeshConfig(), jax.local_devices()[:1])
  # tokens beyond those of the windows are padding
  chunk_len = _round_up(max(chunk_len, fewest_tokens(model, mesh.shape["seq"])), mesh.shape["seq"])
  shapes = EvalShapes(
    batch=_round_up(
      min(eval.batch, _num_rows(eval.protocol, lengths, seq_len)), math.lcm(mesh.shape["data"], num_hosts)),
    chunk_len=chunk_len, max_len=_token_cache_len(model, eval.protocol, longest, chunk_len),
    has_answers=source.answers is not None)
  marker = marker_of(data.anchors, [model.cache], tokenizer)
  if marker is not None:
    check_protected(model, copies=marker.copies, apart=marker.apart, length=longest)
  batches = _first_batches(eval, should_stop, eval_batches(
    source, tokenizer, protocol=eval.protocol, seq_len=seq_len, chunk_len=chunk_len, batch=shapes.batch,
    marker=marker, host=host, num_hosts=num_hosts))
  totals = Totals(bucket_starts(model, longest), source.num_documents)
  answers = AnswerTotals(source, longest) if source.answers else None
  metrics, seconds, compile_seconds = _run(
    model, shapes, mesh, {"params": params, "buffers": buffers}, batches, totals, answers)
  if not eval.max_batches and totals.by_bucket[1].sum() != source.num_targets:
    raise RuntimeError(f"evaluation counted {totals.by_bucket[1].sum()} of {source.num_targets} targets.")
  return make_result(
    source, totals, answers, protocol=eval.protocol, seq_len=seq_len, chunk_len=chunk_len, metrics=metrics,
    seconds=seconds, compile_seconds=compile_seconds)


def _run(
  model: ModelConfig, shapes: EvalShapes, mesh: Mesh, variables: Any, batches: Iterator[EvalBatch], totals: Totals,
  answers: AnswerTotals | None,
) -> tuple[dict[str, float], float, float]:
  """Adds every batch to the totals. Returns (the model's metrics, seconds of running, seconds of compilation)."""
  metric_sums: dict[str, np.ndarray] = {}
  state, in_flight = None, collections.deque()

  def collect() -> None:
    chunk, result = in_flight.popleft()
    nll_BT, right_BT, chunk_metrics = jax.device_get(result)
    totals.add(nll_BT, chunk)
    if answers:
      answers.add(nll_BT, right_BT, chunk)
    for name, pair in chunk_metrics.items():
      metric_sums[name] = metric_sums.setdefault(name, np.zeros(2)) + np.asarray(pair, np.float64)

  opened = time.perf_counter()
  with open_evaluation(model, shapes, mesh, variables) as (step, make_state):
    start = time.perf_counter()
    for chunk in batches:
      if chunk.fresh:
        state = make_state()
      state, result = step(state, put_batch(chunk.batch, mesh, rows=shapes.batch))
      in_flight.append((chunk, result))
      if len(in_flight) > _CHUNKS_IN_FLIGHT:
        collect()
    while in_flight:
      collect()
    seconds = time.perf_counter() - start
  metrics = {name: float(total / count) for name, (total, count) in metric_sums.items() if count}
  return metrics, seconds, start - opened


def _first_batches(
  eval: EvalConfig, should_stop: Callable[[], bool] | None, batches: Iterator[EvalBatch]
) -> Iterator[EvalBatch]:
  """The first `max_batches` batches, of whole windows (cold) or of chunks (carried), until `should_stop`."""
  taken = 0
  for chunk in batches:
    taken += chunk.fresh or eval.protocol == "carried"
    if eval.max_batches and taken > eval.max_batches:
      return
    if should_stop is not None and should_stop():
      raise EvaluationStopped
    yield chunk


def _num_rows(protocol: str, lengths: np.ndarray, seq_len: int) -> int:
  """How many rows can hold tokens at the same time; any more would be computed only to be masked."""
  return len(lengths) if protocol == "carried" else int((-(-lengths // seq_len)).sum())


def _token_cache_len(model: ModelConfig, protocol: str, longest: int, chunk_len: int) -> int:
  if not needs_token_cache(model) or (protocol == "cold" and chunk_len >= longest):
    return 0
  if longest > MAX_TOKEN_CACHE:
    raise ValueError(
      f"a {protocol} evaluation of softmax attention would cache {longest:,} tokens a row, more than "
      f"{MAX_TOKEN_CACHE:,}; use --protocol=cold with windows that fit.")
  return longest


def _round_up(number: int, multiple: int) -> int:
  return -(-max(number, 1) // multiple) * multiple
