"""Bits per byte of a split: every token once, by masks, whatever the batch, the chunks and the mesh."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.config import DataConfig, EvalConfig, MeshConfig, ModelConfig
from lattice_jax.data.loader import EvalBatch, eval_batches
from lattice_jax.data.sources import Source
from lattice_jax.data.tokenizers import Tokenizer
from lattice_jax.evaluation.buckets import Bucket, bucket_starts, make_buckets
from lattice_jax.evaluation.compiled import Shapes, compile_evaluation, place_variables
from lattice_jax.models.decoder import needs_token_cache
from lattice_jax.sharding import make_mesh, put_batch

MAX_TOKEN_CACHE = 65_536
# Chunks in flight: enough to hide the reading of data, few enough to bound memory.
_CHUNKS_IN_FLIGHT = 2


@dataclass(frozen=True)
class EvalResult:
  """One protocol on one split.

  bits_per_byte: total nats / ln 2 / raw bytes of the split (of the evaluated part where `max_batches` cut it).
  nll_per_token: nats.
  seconds, tokens_per_second: without the compilation, which took compile_seconds (0 when it was reused).
  metrics: the model's own reports, such as codebook use, averaged over the split.
  """

  source: str
  fingerprint: str
  split: str
  protocol: str
  seq_len: int
  chunk_len: int
  bits_per_byte: float
  nll_per_token: float
  tokens: int
  seconds: float
  compile_seconds: float
  tokens_per_second: float
  buckets: tuple[Bucket, ...]
  metrics: dict[str, float]


def evaluate_protocols(
  model: ModelConfig, params: Any, buffers: Any, source: Source, tokenizer: Tokenizer, *, eval: EvalConfig,
  data: DataConfig, mesh: Mesh | None = None,
) -> list[EvalResult]:
  """`evaluate` for the protocol of the config, or for cold and carried in turn where it says both."""
  protocols = ("cold", "carried") if eval.protocol == "both" else (eval.protocol,)
  return [
    evaluate(
      model, params, buffers, source, tokenizer, eval=replace(eval, protocol=protocol), data=data, mesh=mesh)
    for protocol in protocols]


def evaluate(
  model: ModelConfig, params: Any, buffers: Any, source: Source, tokenizer: Tokenizer, *, eval: EvalConfig,
  data: DataConfig, mesh: Mesh | None = None,
) -> EvalResult:
  """The loss over the whole split.

  cold: windows of `seq_len` tokens, each from an empty memory (the papers' protocol). carried: whole documents, the
  memory running on; the result then does not depend on `seq_len`.

  `source` is the loaded split; `eval.split` is not read. Parameters that lie on `mesh` stay as they are sharded;
  others are copied to every device. Raises ValueError where the protocol does not fit the model.
  """
  seq_len = eval.seq_len or data.seq_len
  documents = np.diff(source.offsets)
  longest = int(documents.max()) if eval.protocol == "carried" else min(seq_len, int(documents.max()))
  chunk_len = min(eval.chunk_len or seq_len, seq_len, longest)
  host, num_hosts = (jax.process_index(), jax.process_count()) if mesh else (0, 1)
  mesh = mesh or make_mesh(MeshConfig(), jax.local_devices()[:1])
  shapes = Shapes(
    batch=_round_up(
      min(eval.batch, _num_rows(eval.protocol, documents, seq_len)), math.lcm(mesh.shape["data"], num_hosts)),
    chunk_len=chunk_len,
    max_len=_token_cache_len(model, eval.protocol, longest, chunk_len),
    starts=tuple(bucket_starts(model, longest).tolist()))
  batches = eval_batches(
    source, tokenizer, protocol=eval.protocol, seq_len=seq_len, chunk_len=chunk_len, batch=shapes.batch,
    host=host, num_hosts=num_hosts)
  sums, metrics, seconds, compile_seconds = _run(
    model, shapes, mesh, {"params": params, "buffers": buffers}, _first_batches(batches, eval))
  nats, tokens = sums.sum(axis=1)
  if not eval.max_batches and tokens != len(source.tokens):
    raise RuntimeError(f"evaluation counted {int(tokens)} targets in a split of {len(source.tokens)} tokens.")
  bytes_per_token = source.num_bytes / len(source.tokens)
  return EvalResult(
    source=source.name, fingerprint=source.fingerprint, split=source.split, protocol=eval.protocol, seq_len=seq_len,
    chunk_len=chunk_len, bits_per_byte=nats / tokens / math.log(2) / bytes_per_token, nll_per_token=nats / tokens,
    tokens=round(tokens), seconds=seconds, compile_seconds=compile_seconds, tokens_per_second=tokens / seconds,
    buckets=make_buckets(np.asarray(shapes.starts), longest, sums[0], sums[1], bytes_per_token), metrics=metrics)


def _run(
  model: ModelConfig, shapes: Shapes, mesh: Mesh, variables: Any, batches: Iterator[EvalBatch]
) -> tuple[np.ndarray, dict[str, float], float, float]:
  """(nats, tokens) by bucket [2, E] in float64, the model's metrics, seconds without and seconds of compilation."""
  variables = place_variables(variables, mesh)
  start = time.perf_counter()
  step, make_state = compile_evaluation(model, shapes, mesh, variables)
  compile_seconds = time.perf_counter() - start
  sums = np.zeros((2, len(shapes.starts)))
  metric_sums: dict[str, np.ndarray] = {}
  state, in_flight = None, collections.deque()

  def collect() -> None:
    chunk_sums, chunk_metrics = jax.device_get(in_flight.popleft())
    sums[...] += np.asarray(chunk_sums, np.float64).sum(axis=(1, 2))
    for name, pair in chunk_metrics.items():
      metric_sums[name] = metric_sums.setdefault(name, np.zeros(2)) + np.asarray(pair, np.float64)

  start = time.perf_counter()
  for chunk in batches:
    if chunk.fresh:
      state = make_state()
    state, result = step(variables, state, put_batch(chunk.batch, mesh, rows=shapes.batch))
    in_flight.append(result)
    if len(in_flight) > _CHUNKS_IN_FLIGHT:
      collect()
  while in_flight:
    collect()
  seconds = time.perf_counter() - start
  metrics = {name: float(total / count) for name, (total, count) in metric_sums.items() if count}
  return sums, metrics, seconds, compile_seconds


def _first_batches(batches: Iterator[EvalBatch], eval: EvalConfig) -> Iterator[EvalBatch]:
  """At most `max_batches` groups of windows (cold) or chunks (carried)."""
  taken = 0
  for chunk in batches:
    taken += chunk.fresh or eval.protocol == "carried"
    if eval.max_batches and taken > eval.max_batches:
      return
    yield chunk


def _num_rows(protocol: str, documents: np.ndarray, seq_len: int) -> int:
  """Rows that can hold tokens at one time; more would only be computed to be masked."""
  return len(documents) if protocol == "carried" else int((-(-documents // seq_len)).sum())


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
