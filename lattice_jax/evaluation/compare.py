"""Compares cache policies token by token on the same text: how far the predictions of each depart from the first's."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.convert import uncompressed
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.evaluation.bootstrap import interval_of_mean
from lattice_jax.evaluation.cache_contents import row_bytes, slots_in_use
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.files import to_jsonl
from lattice_jax.inference.session import Session
from lattice_jax.markdown import markdown_table
from lattice_jax.marks import Marker

_BLOCK = 32  # neighbouring tokens that are resampled as one block, because their losses are correlated
_WARM_UP = 2  # first steps, which include compilation and are not timed


@dataclass(frozen=True)
class Comparison:
  """One cache compared with the first. Losses are in nats; intervals are 95 %, from resampling blocks of 32 tokens.

  delta_nll: mean loss minus the first cache's. kl: mean KL divergence of the first cache's predictions from its own.
  agreement: share of tokens for which both have the same most likely token. nll_by_position: mean loss by "first–last".
  p50_ms, p95_ms: time of a decode step of all rows, measured in turn with the other caches. kept, cache_bytes: tokens
    and bytes of a row at the end.
  """

  cache: str
  tokens: int
  prompt_len: int
  nll: float
  delta_nll: float
  delta_low: float
  delta_high: float
  kl: float
  kl_low: float
  kl_high: float
  agreement: float
  p50_ms: float
  p95_ms: float
  kept: int
  cache_bytes: int
  nll_by_position: dict[str, float]


def compare(
  model: ModelConfig, variables: Any, caches: dict[str, CacheConfig], tokens_BT: np.ndarray, prompt_len: int, *,
  marker: Marker | None = None, report: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:
  """Reads the first `prompt_len` tokens of each row once for all caches, then the rest one by one under each of them.

  marker: says which tokens are anchors; none are without one.

  Raises:
    ValueError: there are fewer than two caches, or too little text after the prompt.
  """
  batch, length = tokens_BT.shape
  if len(caches) < 2:
    raise ValueError("a comparison needs at least two caches, such as --cache=full --cache=lagkv:ratio=0.25.")
  if not 0 < prompt_len < length - _WARM_UP:
    raise ValueError(
      f"a prompt of {prompt_len:,} tokens leaves too little of a text of {length:,} to compare on; use a shorter one.")
  # decoding takes one token per call, so caches that drop tokens need no room for more
  caches = {name: dataclasses.replace(cache, call_len=1) for name, cache in caches.items()}
  prompt = Session(uncompressed(model, list(caches.values())), variables, batch=batch, max_len=length, marker=marker)
  prompt.read(list(tokens_BT[:, :prompt_len]))
  sessions = {name: prompt.compress(cache) for name, cache in caches.items()}
  del prompt
  reference = next(iter(sessions.values()))
  scores: dict[str, list[np.ndarray]] = {name: [] for name in caches}
  seconds: dict[str, list[float]] = {name: [] for name in caches}
  for place in range(prompt_len, length):
    token_B = reference.put(tokens_BT[:, place].astype(np.int32))
    first = reference.state.logits_BA
    for name, session in sessions.items():
      scores[name].append(np.stack(_score(first, session.state.logits_BA, token_B)))
    for name, session in sessions.items():
      start = time.perf_counter()
      session.step(token_B)
      jax.block_until_ready(session.state)
      seconds[name].append(time.perf_counter() - start)
    if (place - prompt_len) % _BLOCK == 0:
      report(f"token {place - prompt_len + 1:,} of {length - prompt_len:,}")
  # float64, because small differences of means matter
  values = {name: np.stack(steps, axis=-1).astype(np.float64) for name, steps in scores.items()}
  first = values[next(iter(caches))]
  return [
    _comparison(name, values[name], first, prompt_len, np.array(seconds[name][_WARM_UP:]), session)
    for name, session in sessions.items()]


@jax.jit
def _score(first_BA: jax.Array, other_BA: jax.Array, token_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """For each row: (nats of the token, divergence from the first cache, whether both have the same top token)."""
  first_BA, log_BA = jax.nn.log_softmax(first_BA), jax.nn.log_softmax(other_BA)
  nll_B = -jnp.take_along_axis(log_BA, token_B[:, None], axis=-1)[:, 0]
  kl_B = (jnp.exp(first_BA) * (first_BA - log_BA)).sum(-1)
  return nll_B, kl_B, (first_BA.argmax(-1) == log_BA.argmax(-1)).astype(jnp.float32)


def _comparison(
  name: str, score_3BT: np.ndarray, first_3BT: np.ndarray, prompt_len: int, seconds: np.ndarray, session: Session,
) -> Comparison:
  nll_BT, kl_BT, same_BT = score_3BT
  delta_BT = nll_BT - first_3BT[0]
  delta_low, delta_high = interval_of_mean(delta_BT.ravel(), block=_BLOCK)
  kl_low, kl_high = interval_of_mean(kl_BT.ravel(), block=_BLOCK)
  p50, p95 = np.quantile(1000 * seconds, [0.5, 0.95]).tolist()
  return Comparison(
    cache=name, tokens=nll_BT.size, prompt_len=prompt_len, nll=float(nll_BT.mean()), delta_nll=float(delta_BT.mean()),
    delta_low=delta_low, delta_high=delta_high, kl=float(kl_BT.mean()), kl_low=kl_low, kl_high=kl_high,
    agreement=float(same_BT.mean()), p50_ms=p50, p95_ms=p95, kept=slots_in_use(session.caches),
    cache_bytes=row_bytes(session.caches), nll_by_position=dict(_by_position(nll_BT, prompt_len)))


def _by_position(nll_BT: np.ndarray, prompt_len: int) -> Iterator[tuple[str, float]]:
  """Mean losses over ranges of 64, 64, 128, 256 … tokens after the prompt."""
  start, stop = 0, 64
  while start < nll_BT.shape[1]:
    piece_BT = nll_BT[:, start:stop]
    yield f"{prompt_len + start}–{prompt_len + start + piece_BT.shape[1] - 1}", float(piece_BT.mean())
    start, stop = stop, 2 * stop


def format_comparisons(comparisons: list[Comparison]) -> str:
  """Two Markdown tables: one row per cache, and the loss by position under each."""
  first, positions = comparisons[0], list(comparisons[0].nll_by_position)
  return "\n\n".join([
    f"# Caches beside «{first.cache}»",
    f"{first.tokens:,} tokens after prompts of {first.prompt_len:,}, each predicted from all before; losses in nats.",
    markdown_table([
      ("cache", "kept", "bytes per row", "loss", "loss − first", "95 %", "divergence", "95 %", "same top token",
       "p50 ms", "p95 ms"),
      *((
        row.cache, f"{row.kept:,}", f"{row.cache_bytes:,}", f"{row.nll:.4f}", f"{row.delta_nll:+.4f}",
        f"{row.delta_low:+.4f} to {row.delta_high:+.4f}", f"{row.kl:.4f}", f"{row.kl_low:.4f} to {row.kl_high:.4f}",
        f"{row.agreement:.1%}", f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}") for row in comparisons)]),
    "## Loss by position",
    markdown_table([("cache", *positions), *(
      (row.cache, *(f"{row.nll_by_position[place]:.4f}" for place in positions)) for row in comparisons)])]) + "\n"


def write_comparisons(folder: Path, comparisons: list[Comparison]) -> list[Path]:
  """Writes compare.md, and compare.jsonl with one line per cache."""
  paths = [folder / "compare.md", folder / "compare.jsonl"]
  write_text(paths[0], format_comparisons(comparisons))
  write_text(paths[1], to_jsonl(dataclasses.asdict(row) for row in comparisons))
  return paths
