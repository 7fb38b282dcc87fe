"""Records of updates and the means of a progress line, by hand; the clock is a list."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax import writers
from lattice_jax.training import reporter
from tests.training import tiny


class Kept(writers.Writer):
  """Remembers what it is told."""

  def __init__(self):
    self.updates, self.reports, self.notes = [], [], []

  def update(self, record):
    self.updates.append(record)

  def report(self, record):
    self.reports.append(record)

  def note(self, text):
    self.notes.append(text)


def test_a_report_is_of_the_updates_since_the_last(monkeypatch):
  clock = iter([0.0, 2.0, 6.0])
  monkeypatch.setattr(reporter.time, "perf_counter", lambda: next(clock))
  config, kept = tiny.make_config(train__log_every=4), Kept()
  told = reporter.Reporter(config, kept, tokens_per_byte=0.5, flops_per_token=10.0, peak_flops=1000.0)

  def metrics(*losses):
    count = len(losses)
    return {"loss": np.log(2) * np.array(losses), "skipped": np.zeros(count), "halted": np.zeros(count)}

  # two updates in 2 s, of which half a second was spent on waiting for data, then two in 4 s
  told.updates(0, metrics(8.0, 6.0), started=0.5, waited=0.5)
  told.updates(2, metrics(4.0, 2.0), started=2.0, waited=0.0)
  assert [record["step"] for record in kept.updates] == [1, 2, 3, 4]
  np.testing.assert_allclose([record["bits_per_byte"] for record in kept.updates], [4, 3, 2, 1])
  tokens = 8 * 16  # of an update
  assert [record["tokens_per_second"] for record in kept.updates] == [tokens, tokens, tokens / 2, tokens / 2]
  assert [record["time_data_wait"] for record in kept.updates] == [0.25, 0.25, 0, 0]
  report, = kept.reports
  assert report["step"] == 4 and report["total"] == 12 and report["bits_per_byte"] == pytest.approx(2.5)
  assert report["tokens_per_second"] == pytest.approx(4 * tokens / 6)
  assert report["time_data_wait"] == pytest.approx(0.5 / 6)
  assert report["mfu"] == pytest.approx(4 * tokens / 6 * 10 / 1000)
  assert report["time_left"] == pytest.approx((12 - 4) * 1.5)
