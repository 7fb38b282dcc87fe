"""Speed and memory of a pretrained model whose weights are streamed through a budget, measured by one process each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.inference.generate import GenerateOptions, TokenStream
from lattice_jax.inference.streaming import StreamedModel
from lattice_jax.inference.streaming.budget import least_budget
from lattice_jax.inference.streaming.process_memory import ProcessMemory
from lattice_jax.inference.streaming.report import make_report
from lattice_jax.inference.streaming.source import Options
from lattice_jax.markdown import markdown_table
from lattice_jax.models.pretrained import Pretrained, open_pretrained
from lattice_jax.shown import shown_bytes

_PROMPT_LEN = 32
_OPTIONS = GenerateOptions(temperature=0.0, banned=(), start_ids=(), block_len=1)
PAGE_CACHES = ("warm", "cold")
ORDINARY = "ordinary"


def measure(file: Path, share: float | None, page_cache: str, *, tokens: int, rounds: int) -> dict[str, Any]:
  """Draws `tokens` tokens `rounds` times. share: of the layers that stay; None reads all weights, as without a budget.

  page_cache: "cold" takes every layer out of the page cache once it has been copied, so that each read is one of the
  disk; for that, no other process may have mapped the file.
  """
  pretrained = open_pretrained(file)
  if share is None:
    return _measure_ordinary(pretrained, tokens, rounds)
  layers, options = pretrained.model.layers, Options(drop_pages=page_cache == "cold")
  budget = _budget(pretrained, round(share * layers), tokens)
  model = StreamedModel(pretrained, budget, options=options)
  before, speeds, reports = ProcessMemory.now(), [], []
  for _ in range(rounds):
    speeds.append(_speed(_stream(pretrained, model, tokens)))
    reports.append(make_report(model, speeds[-1]))
  report, plan = reports[-1], model.usage.plan
  bandwidth = getattr(report, page_cache)
  if bandwidth is not None:
    bandwidth = statistics.median(getattr(one, page_cache) for one in reports)
  return {
    "budget": budget, "counted": report.peak, "layers": layers, "pinned": report.pinned, "apart": len(plan.apart),
    "streamed_bytes": report.streamed_bytes, "tokens_per_second": statistics.median(speeds), "all": speeds,
    "bandwidth": bandwidth, "ceiling": report.ceiling(bandwidth), "hits": report.counters.hits,
    "misses": report.counters.misses, "bytes_read": report.counters.bytes_read, "stalls": report.counters.stalls,
    "stall_seconds": report.counters.stall_seconds, "anonymous_before": before.anonymous,
    "anonymous": max((one.memory.anonymous or 0) for one in reports), "file_pages": report.memory.file}


def _measure_ordinary(pretrained: Pretrained, tokens: int, rounds: int) -> dict[str, Any]:
  variables, before = {"params": pretrained.params(stored=True)}, ProcessMemory.now()
  most, speeds = before, []
  for _ in range(rounds):
    stream = _stream(pretrained, variables, tokens)
    for _ in stream:
      most = most.most(ProcessMemory.now())
    speeds.append(stream.timing.tokens_per_second)
  return {
    "layers": pretrained.model.layers, "pinned": pretrained.model.layers, "streamed_bytes": 0,
    "tokens_per_second": statistics.median(speeds), "all": speeds, "anonymous_before": before.anonymous,
    "anonymous": most.anonymous, "file_pages": most.file}


def _budget(pretrained: Pretrained, num_pinned: int, tokens: int) -> int:
  """The least budget in which so many layers stay, by what programs and state turn out to need; nothing is read."""
  model = StreamedModel(pretrained, 1 << 60)
  stream = _stream(pretrained, model, tokens)
  del stream
  return least_budget(model.usage.sizes, num_pinned, depth=model.options.depth)


def _stream(pretrained: Pretrained, variables: Any, tokens: int) -> TokenStream:
  prompt = np.random.default_rng(0).integers(3, pretrained.model.vocab, _PROMPT_LEN)
  return TokenStream(pretrained.model, variables, [prompt], length=tokens + 1, options=_OPTIONS)


def _speed(stream: TokenStream) -> float:
  for _ in stream:
    pass
  return stream.timing.tokens_per_second


def format_table(records: Sequence[dict[str, Any]]) -> str:
  """A line for each record of one file; the runs with all layers in memory are what the others are compared with."""
  head = [
    "page cache", "layers that stay", "budget", "read a token", "tokens/s", "at most, by reading", "of the lower limit",
    "hits, misses", "waited", "RssAnon", "of all layers", "of ordinary", "RssFile"]
  ordinary = next((record for record in records if record["page_cache"] == ORDINARY), None)
  resident = next((record for record in records if record["page_cache"] != ORDINARY and is_resident(record)), None)
  rows = [_row(record, resident, ordinary) for record in records]
  return markdown_table([head, *rows], "ll" + "r" * (len(head) - 2))


def is_resident(record: dict[str, Any]) -> bool:
  return record["pinned"] == record["layers"]


def lower_limit(record: dict[str, Any], resident: dict[str, Any] | None) -> float | None:
  """Tokens a second that neither reading nor computing lets a text exceed; None where nothing is read.

  The lower of the file's bandwidth over the bytes that a token reads, and the speed with all layers in memory.
  """
  limits = [record["ceiling"], resident["tokens_per_second"] if resident else None]
  return min((limit for limit in limits if limit), default=None) if record["streamed_bytes"] else None


def _row(
  record: dict[str, Any], resident: dict[str, Any] | None, ordinary: dict[str, Any] | None) -> list[str]:
  is_ordinary = record["page_cache"] == ORDINARY
  speed, limit = record["tokens_per_second"], None if is_ordinary else lower_limit(record, resident)
  ceiling, waited = ("", "") if is_ordinary or not record["streamed_bytes"] else (
    f"{record['ceiling']:.1f} ({shown_bytes(record['bandwidth'])}/s)" if record["ceiling"] else "unknown",
    f"{record['stall_seconds']:.1f} s")

  def part_of(other: dict[str, Any] | None) -> str:
    has_both = other and other is not record and other["anonymous"] and record["anonymous"]
    return f"{100 * record['anonymous'] / other['anonymous']:.0f} %" if has_both else ""

  return [
    record["page_cache"], f"{record['pinned']} of {record['layers']}",
    "" if is_ordinary else shown_bytes(record["budget"]), shown_bytes(record["streamed_bytes"]), f"{speed:.1f}",
    ceiling, f"{100 * speed / limit:.0f} %" if limit else "",
    "" if is_ordinary else f"{record['hits']:,}, {record['misses']:,}", waited,
    _size(record["anonymous"]), part_of(resident), part_of(ordinary), _size(record["file_pages"])]


def _size(number: int | None) -> str:
  return "unknown" if number is None else shown_bytes(number)
