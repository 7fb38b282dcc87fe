"""What streaming cost, beside what it cannot beat: the bytes that a token needs over the bandwidth of the file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lattice_jax.inference.streaming.layers import LayerParts
from lattice_jax.inference.streaming.loader import Counters
from lattice_jax.inference.streaming.model import StreamedModel
from lattice_jax.inference.streaming.process_memory import ProcessMemory
from lattice_jax.markdown import markdown_table
from lattice_jax.shown import shown_bytes

_MAY_STAY = 0.2  # of the pages, where the page cache counts as emptied
_MOST = 1 << 28  # bytes of the file that are read to measure its bandwidth


@dataclass(frozen=True)
class Report:
  """What was read through one budget. budget, peak: bytes that were allowed, and that were counted at most.

  pinned: of num_layers; apart: those of them with a byte for each 4-bit code. streamed_bytes: read for each pass over
  the layers, and tokens_per_pass, of all rows, that it serves. tokens_per_second: None for a text of one token. warm,
  cold: bytes a second that a plain read of the same layers gets from the page cache, and from the disk; None where
  nothing is streamed, or the page cache could not be emptied. memory: of the process when most of it was anonymous.
  """

  budget: int
  peak: int
  num_layers: int
  pinned: int
  apart: int
  streamed_bytes: int
  tokens_per_pass: int
  tokens_per_second: float | None
  warm: float | None
  cold: float | None
  counters: Counters
  memory: ProcessMemory

  def ceiling(self, bandwidth: float | None) -> float | None:
    """Tokens a second that reading alone would take; None where nothing is read."""
    return self.tokens_per_pass * bandwidth / self.streamed_bytes if bandwidth and self.streamed_bytes else None


def make_report(model: StreamedModel, tokens_per_second: float | None, *, tokens_per_pass: int = 1) -> Report:
  """Of what was read last. It measures the bandwidth of the file, so it takes its time.

  Raises:
    ValueError: nothing was drawn yet.
  """
  usage = model.usage
  if usage is None or usage.plan is None:
    raise ValueError("there is nothing to report: no session of this model has read anything yet.")
  plan = usage.plan
  layers = [layer for index, layer in enumerate(model.files.layers) if index not in plan.pinned]
  warm, cold = (read_bandwidth(layers, cold=is_cold) if layers else None for is_cold in (False, True))
  return Report(
    budget=model.budget, peak=usage.pool.peak, num_layers=len(model.files.layers), pinned=len(plan.pinned),
    apart=len(plan.apart) if plan.has_codes else 0, streamed_bytes=plan.streamed_bytes,
    tokens_per_pass=tokens_per_pass, tokens_per_second=tokens_per_second, warm=warm, cold=cold,
    counters=replace(usage.counters), memory=usage.memory)


def read_bandwidth(layers: Sequence[LayerParts], *, cold: bool) -> float | None:
  """Bytes a second of plain reads of the layers, one after another into the same memory, as a loader would.

  cold: out of the disk, and out of the page cache again; None where that keeps the file, as where another process has
  mapped it.
  """
  spans, total = [], 0
  for layer in layers:
    if total < _MOST:
      spans += layer.spans
      total += sum(stop - start for _, start, stop in layer.spans)
  out = np.empty(max(stop - start for _, start, stop in spans), np.uint8)

  def read_all() -> float:
    start_time = time.perf_counter()
    for file, start, stop in spans:
      file.read_into(start, out[:stop - start])
      if cold:
        file.drop(start, stop)
    return time.perf_counter() - start_time

  if not cold:
    read_all()
    return total / read_all()
  for file, start, stop in spans:
    file.drop(start, stop)
  shares = [file.cached_share(start, stop) for file, start, stop in spans]
  # large pages across the ends of a span may stay
  is_dropped = None not in shares and sum(shares) < _MAY_STAY * len(shares)
  return total / read_all() if is_dropped else None


def format_reports(reports: Sequence[Report]) -> str:
  """A line of a Markdown table for each."""
  head = [
    "budget", "counted", "layers that stay", "read a pass", "tokens/s", "at most, page cache", "at most, disk", "hits",
    "misses", "read", "stalls", "RssAnon", "RssFile"]
  return markdown_table([head, *(_cells(report) for report in reports)])


def _cells(report: Report) -> list[str]:
  counters, memory = report.counters, report.memory
  apart = f" ({report.apart} apart)" if report.apart else ""
  return [
    shown_bytes(report.budget), shown_bytes(report.peak), f"{report.pinned} of {report.num_layers}{apart}",
    shown_bytes(report.streamed_bytes), "" if report.tokens_per_second is None else f"{report.tokens_per_second:.2f}",
    *(_ceiling(report, bandwidth) for bandwidth in (report.warm, report.cold)),
    f"{counters.hits:,}", f"{counters.misses:,}", shown_bytes(counters.bytes_read),
    f"{counters.stalls:,} ({counters.stall_seconds:.2f} s)",
    *("unknown" if number is None else shown_bytes(number) for number in (memory.anonymous, memory.file))]


def _ceiling(report: Report, bandwidth: float | None) -> str:
  ceiling = report.ceiling(bandwidth)
  if ceiling is None:
    return "no limit" if not report.streamed_bytes else "unknown"
  return f"{ceiling:.1f} ({shown_bytes(bandwidth)}/s)"
