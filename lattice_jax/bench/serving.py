"""Many clients at once against a server over HTTP, each of whose answers is compared with its text alone."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.markdown import markdown_table

# (letters of the prompt, tokens of the text) and samplings: each pair of them is compiled to write the text alone
_SHAPES = ((6, 16), (30, 60), (100, 24), (150, 100))
_SAMPLINGS = ({"temperature": 0.0}, {"temperature": 0.9, "top_k": 100, "top_p": 0.95})
# what clients do, in parts of 100: read a stream, ask for the whole answer, leave in mid-stream, send nonsense
_STREAM, _WHOLE, _LEAVE, _WRONG = "stream", "whole", "leave", "wrong"
_MODES = {_STREAM: 78, _WHOLE: 10, _LEAVE: 8, _WRONG: 4}
_WRONG_BODIES = (b"{", b'{"prompt": "a", "n": 2}', b'{"prompt": "a", "max_tokens": 100000}', b'{"promt": "a"}')
_TIMEOUT = 600.0
_SAMPLE_SECONDS = 5.0  # between two looks at the metrics


@dataclass(frozen=True)
class Question:
  """A request, and what a model answers that has nothing else to do."""

  body: dict[str, Any]
  text: str
  finish: str


@dataclass
class Seen:
  """What the clients saw.

  accepted, first, gaps, whole: seconds, of streams. wrong: answers that are not those of their questions. lost: those
  that did not come. memory: (when, resident bytes of the server).
  """

  counts: collections.Counter[str] = field(default_factory=collections.Counter)
  accepted: list[float] = field(default_factory=list)
  first: list[float] = field(default_factory=list)
  gaps: list[float] = field(default_factory=list)
  whole: list[float] = field(default_factory=list)
  wrong: list[dict[str, Any]] = field(default_factory=list)
  lost: list[str] = field(default_factory=list)
  memory: list[tuple[float, int]] = field(default_factory=list)


def make_questions(model: LoadedModel, num: int, *, chunk_len: int) -> list[Question]:
  """Requests of mixed lengths, each written alone by `generate`."""
  draw, questions = random.Random(0), []
  for seed in range(num):
    letters, length = _SHAPES[seed % len(_SHAPES)]
    sampling = _SAMPLINGS[seed // len(_SHAPES) % len(_SAMPLINGS)]
    prompt = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz    ") for _ in range(letters))
    written = model.draw_texts([prompt], length=length, seed=seed, prefill_len=chunk_len, **sampling)
    questions.append(Question(
      {"prompt": prompt, "max_tokens": length, "seed": seed, **sampling}, written.texts[0],
      "stop" if written.finishes[0] == "stop" else "length"))
  return questions


async def drive(
  url: str, questions: Sequence[Question], *, streams: int, seconds: float) -> tuple[Seen, dict[str, float]]:
  """Keeps so many clients busy for so long; returns what they saw, and the server's metrics when all have left."""
  seen, end = Seen(), time.perf_counter() + seconds
  # One pool for all would look at each of its connections at each request, and the clients would be what is measured.
  # http needs no certificates, which take a while to read.
  options = {"base_url": url, "timeout": _TIMEOUT, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}

  async def one(number: int) -> None:
    async with httpx.AsyncClient(**options) as client:
      await _client(client, random.Random(number), questions, seen, end)

  async with httpx.AsyncClient(**options) as client:
    watcher = asyncio.create_task(_watch(client, seen))
    await asyncio.gather(*map(one, range(streams)))
    watcher.cancel()
    metrics = await _metrics(client)
    seen.memory.append((time.perf_counter(), int(metrics["process_resident_memory_bytes"])))
  return seen, metrics


async def _client(
  client: httpx.AsyncClient, draw: random.Random, questions: Sequence[Question], seen: Seen, end: float) -> None:
  while time.perf_counter() < end:
    mode, = draw.choices(list(_MODES), list(_MODES.values()))
    question = draw.choice(questions)
    seen.counts[mode] += 1
    try:
      if mode == _WRONG:
        response = await client.post("/v1/completions", content=draw.choice(_WRONG_BODIES))
        seen.counts["refused"] += 400 <= response.status_code < 500 and bool(response.json()["error"]["message"])
      elif mode == _WHOLE:
        choice = (await client.post("/v1/completions", json=question.body)).json()["choices"][0]
        _compare(seen, question, choice["text"], choice["finish_reason"])
      else:
        await _stream(client, question, seen, leaves_after=draw.randrange(1, 12) if mode == _LEAVE else None)
    except (httpx.HTTPError, KeyError, ValueError) as error:
      seen.lost.append(f"{mode}: {error!r}"[:200])


async def _stream(client: httpx.AsyncClient, question: Question, seen: Seen, *, leaves_after: int | None) -> None:
  start = latest = time.perf_counter()
  text, finish, pieces = "", None, 0
  body = question.body | {"stream": True}
  async with client.stream("POST", "/v1/completions", json=body) as response:
    seen.accepted.append(time.perf_counter() - start)
    async for line in response.aiter_lines():
      if not line or line == "data: [DONE]":
        continue
      choice, now = json.loads(line.removeprefix("data: "))["choices"][0], time.perf_counter()
      (seen.gaps if pieces else seen.first).append(now - latest)
      text, finish, pieces, latest = text + choice["text"], choice["finish_reason"], pieces + 1, now
      if pieces == leaves_after:
        return
  seen.whole.append(latest - start)
  _compare(seen, question, text, finish)


def _compare(seen: Seen, question: Question, text: str, finish: str | None) -> None:
  seen.counts["compared"] += 1
  if (text, finish) != (question.text, question.finish):
    seen.wrong.append({"body": question.body, "got": text, "wanted": question.text, "finish": finish})


async def _watch(client: httpx.AsyncClient, seen: Seen) -> None:
  while True:
    metrics = await _metrics(client)
    seen.memory.append((time.perf_counter(), int(metrics["process_resident_memory_bytes"])))
    await asyncio.sleep(_SAMPLE_SECONDS)


async def _metrics(client: httpx.AsyncClient) -> dict[str, float]:
  """The sums over labels, but for the bounds of buckets, which stand behind the name: NAME_bucket<0.5."""
  sums: dict[str, float] = collections.defaultdict(float)
  for family in text_string_to_metric_families((await client.get("/metrics")).text):
    for sample in family.samples:
      bound = f"<{sample.labels['le']}" if "le" in sample.labels else ""
      sums[sample.name + bound] += sample.value
  return sums


def histogram_quantiles(metrics: dict[str, float], name: str) -> dict[str, float]:
  """Milliseconds, between the bounds of a bucket by proportion; beyond the last bound the bound itself."""
  start = f"{name}_bucket<"
  buckets = sorted((float(key.removeprefix(start)), count) for key, count in metrics.items() if key.startswith(start))
  bounds, counts = map(np.array, zip(*buckets, strict=True))
  if not counts[-1]:
    return {}
  bounds[-1] = bounds[-2]
  return {
    f"p{percent}": 1e3 * float(np.interp(counts[-1] * percent / 100, [0, *counts], [0, *bounds]))
    for percent in (50, 95, 99)}


def record(seen: Seen, metrics: dict[str, float], *, streams: int, seconds: float) -> dict[str, Any]:
  """The figures as JSON. `tokens_per_second` counts those that the server wrote, for whomever."""
  sizes = [size for _, size in seen.memory]
  return {
    "streams": streams, "seconds": seconds, **{f"requests_{name}": seen.counts[name] for name in _MODES},
    "refused_with_a_sentence": seen.counts["refused"], "compared": seen.counts["compared"], "wrong": len(seen.wrong),
    "lost": len(seen.lost), "tokens": int(metrics["lattice_completion_tokens_total"]),
    "tokens_per_second": metrics["lattice_completion_tokens_total"] / seconds,
    **{f"{name}_ms": _quantiles(values) for name, values in (
      ("accepted", seen.accepted), ("first_piece", seen.first), ("gap", seen.gaps), ("whole_stream", seen.whole))},
    **{f"server_{name}_ms": histogram_quantiles(metrics, f"lattice_{name}_seconds") for name in (
      "time_to_first_token", "inter_token")},
    "rows_in_use_after": metrics["lattice_rows_in_use"], "queue_after": metrics["lattice_queue_length"],
    "compilations": metrics["lattice_compilations_total"], "cache_bytes": metrics["lattice_cache_bytes"],
    "resident_bytes": sizes, "wrong_answers": seen.wrong[:5], "lost_answers": seen.lost[:5]}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
  if not values:
    return {}
  p50, p95, p99, most = (1e3 * np.quantile(values, [0.5, 0.95, 0.99, 1])).tolist()
  return {"p50": p50, "p95": p95, "p99": p99, "max": most}


def format_record(found: dict[str, Any]) -> str:
  """Two tables in Markdown."""
  asked = sum(found[f"requests_{name}"] for name in _MODES)
  sizes = found["resident_bytes"]
  settled = sizes[min(2, len(sizes) - 1)]
  rows = [
    ("what", "figure"), ("requests in all", f"{asked:,}"),
    ("– streams, whole answers, clients that left, nonsense", ", ".join(
      f"{found[f'requests_{name}']:,}" for name in _MODES)),
    ("answers compared with their texts alone", f"{found['compared']:,}"),
    ("– that differed; were lost", f"{found['wrong']:,}; {found['lost']:,}"),
    ("nonsense that was refused with a sentence", f"{found['refused_with_a_sentence']:,}"),
    ("tokens written; per second", f"{found['tokens']:,}; {found['tokens_per_second']:,.0f}"),
    ("rows in use, queue when all had left", f"{found['rows_in_use_after']:.0f}, {found['queue_after']:.0f}"),
    ("programs compiled after the start", f"{found['compilations']:.0f}"),
    ("resident MB: before, after ten seconds, most, at the end", ", ".join(
      f"{size / 1e6:,.1f}" for size in (sizes[0], settled, max(sizes), sizes[-1])))]
  times = [("milliseconds", "p50", "p95", "p99", "max")]
  for name, title in (
    ("server_time_to_first_token", "server: to the first token"), ("server_inter_token", "– between two deliveries"),
    ("accepted", "clients: until a stream begins"), ("first_piece", "– to its first piece"),
    ("gap", "– between two pieces"), ("whole_stream", "– whole streams")):
    cells = [f"{value:,.1f}" for value in found[f"{name}_ms"].values()]
    times.append((title, *cells, *[""] * (len(times[0]) - 1 - len(cells))))
  return f"{markdown_table(rows)}\n\n{markdown_table(times)}"
