"""The report says what was held, read and waited for, and what the file's bandwidth would allow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lattice_jax.formats.mapped_file import MappedFile
from lattice_jax.inference.streaming import StreamedModel, process_memory, report
from lattice_jax.inference.streaming.loader import Counters
from lattice_jax.inference.streaming.process_memory import ProcessMemory
from tests.inference.streaming import tiny

ROOM = {"batch": 1, "max_len": 16, "chunk_len": 4}
EXAMPLE = report.Report(
  budget=100_000_000, peak=99_000_000, num_layers=30, pinned=12, apart=0, streamed_bytes=40_000_000, tokens_per_pass=1,
  tokens_per_second=45.0, warm=2e9, cold=None, counters=Counters(3, 4, 160_000_000, 2, 0.25),
  memory=ProcessMemory(300_000_000, None))


def test_a_ceiling_is_the_bandwidth_over_the_bytes_of_a_token():
  assert EXAMPLE.ceiling(EXAMPLE.warm) == 50 and EXAMPLE.ceiling(None) is None
  assert dataclasses.replace(EXAMPLE, streamed_bytes=0).ceiling(2e9) is None
  assert dataclasses.replace(EXAMPLE, tokens_per_pass=6).ceiling(2e9) == 300


def test_a_line_of_the_table_has_every_figure():
  head, _, line = report.format_reports([EXAMPLE]).splitlines()
  assert [cell.strip() for cell in line.strip("|").split("|")] == [
    "100 MB", "99.0 MB", "12 of 30", "40.0 MB", "45.00", "50.0 (2.00 GB/s)", "unknown", "3", "4", "160 MB",
    "2 (0.25 s)", "300 MB", "unknown"]
  assert head.count("|") == line.count("|")
  resident = dataclasses.replace(EXAMPLE, streamed_bytes=0, apart=7, tokens_per_second=None)
  line = report.format_reports([resident]).splitlines()[-1]
  assert "| 12 of 30 (7 apart) |" in line and line.count("no limit") == 2 and "|  |" in line


def test_a_report_is_of_the_session_that_read_last(tmp_path, monkeypatch):
  pretrained = tiny.open_tiny(tmp_path)
  needs = StreamedModel(pretrained, tiny.HUGE)
  needs.open_session(pretrained.model, **ROOM)
  model = StreamedModel(pretrained, tiny.least_budget(needs.usage.sizes, 2, depth=1))
  with pytest.raises(ValueError, match="no session of this model has read anything yet"):
    report.make_report(model, None)
  session = model.open_session(pretrained.model, **ROOM)
  session.step(np.array([1]))
  session.close()
  asked = []
  monkeypatch.setattr(
    report, "read_bandwidth", lambda layers, cold: asked.append((len(layers), cold)) or 1e6 * (2 - cold))
  made = report.make_report(model, 3.0)
  assert (made.pinned, made.num_layers, made.peak, made.warm, made.cold) == (
    2, tiny.LAYERS, model.usage.pool.peak, 2e6, 1e6)
  assert asked == [(tiny.LAYERS - 2, False), (tiny.LAYERS - 2, True)]
  assert made.counters == model.usage.counters and made.counters.misses == tiny.LAYERS
  assert made.memory.anonymous is None or made.memory.anonymous > model.usage.pool.peak


def test_bandwidth_is_that_of_all_bytes_of_the_layers(tmp_path, monkeypatch):
  layers = StreamedModel(tiny.open_tiny(tmp_path), tiny.HUGE).files.layers
  clock, read, dropped = iter(range(0, 1000, 2)), [], []
  monkeypatch.setattr(report.time, "perf_counter", lambda: next(clock))
  monkeypatch.setattr(MappedFile, "read_into", lambda self, start, out: read.append((start, start + len(out))))
  monkeypatch.setattr(MappedFile, "drop", lambda self, start, stop: dropped.append((start, stop)))
  spans = [span[1:] for layer in layers for span in layer.spans]
  total = sum(stop - start for start, stop in spans)
  assert report.read_bandwidth(layers, cold=False) == total / 2
  assert read == 2 * spans and not dropped
  for share, wanted in ((0.05, total / 2), (0.5, None), (None, None)):
    monkeypatch.setattr(MappedFile, "cached_share", lambda self, start, stop, share=share: share)
    assert report.read_bandwidth(layers, cold=True) == wanted
  # once more where it was read, each when it had been
  assert dropped == [*spans, *spans, *spans, *spans]


def test_memory_is_read_apart_or_unknown(tmp_path, monkeypatch):
  status = tmp_path / "status"
  status.write_text("Name:\tpython\nVmRSS:\t   900 kB\nRssAnon:\t     12 kB\nRssFile:\t      7 kB\n")
  monkeypatch.setattr(process_memory, "_STATUS", status)
  now = ProcessMemory.now()
  assert now == ProcessMemory(anonymous=12 * 1024, file=7 * 1024)
  assert now.most(ProcessMemory(5, 99)) is now and ProcessMemory().most(now) is now
  monkeypatch.setattr(process_memory, "_STATUS", tmp_path / "nothing")
  assert ProcessMemory.now() == ProcessMemory(None, None)
