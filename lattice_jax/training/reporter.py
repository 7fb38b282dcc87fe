"""Turns the program's metrics into records: one for every update, and means for the progress line."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import Any

import jax
import numpy as np

from lattice_jax.chips import chip_of_kind
from lattice_jax.config import Config
from lattice_jax.files import Record
from lattice_jax.metrics import bits_per_byte
from lattice_jax.writers import Writer

REPORTS_FOR_ETA = 10


class Reporter:
  """Turns updates into records and passes them to the writers.

  flops_per_token, peak_flops: for the share of the devices' peak that training reaches; without a peak it is left out.
  """

  def __init__(
    self, config: Config, writer: Writer, *, tokens_per_byte: float, flops_per_token: float, peak_flops: float | None
  ):
    self._config = config
    self._writer = writer
    self._tokens_per_byte = tokens_per_byte
    self._flops_per_token = flops_per_token
    self._peak_flops = peak_flops
    self._tokens = config.data.batch * config.data.update_len
    self._start = time.perf_counter()
    self._last_done = self._start
    self._window: list[Record] = []
    self._recent_seconds: deque[float] = deque(maxlen=REPORTS_FOR_ETA * config.train.log_every)
    self._pace: list[tuple[float, float]] = []

  def updates(self, first_step: int, metrics: dict[str, np.ndarray], *, started: float, waited: float) -> None:
    """Records the updates of a call that began at `started`, after the devices `waited` so many seconds for data."""
    now = time.perf_counter()
    count = len(metrics["loss"])
    seconds = max(now - max(self._last_done, started - waited), 1e-9) / count
    self._last_done = now
    self._pace += [(seconds, min(waited / count, seconds))] * count
    for i in range(count):
      record = self._record(first_step + i + 1, {name: float(values[i]) for name, values in metrics.items()})
      record |= {
        "tokens_per_second": self._tokens / seconds, "time_step": seconds,
        "time_data_wait": min(waited / count / seconds, 1.0), "time_elapsed": now - self._start}
      self._writer.update(record)
      if record["skipped"]:
        self._writer.note(f"Update {record['step']} was skipped: its loss or gradient is not finite.")
      self._window.append(record)
      self._recent_seconds.append(seconds)
      if record["step"] % self._config.train.log_every == 0 or record["step"] == self._config.train.steps:
        self._report()

  def pace(self) -> tuple[float, float]:
    """Seconds an update took since the last call, and of these how long it waited for data; 0 if there was none."""
    pace, self._pace = self._pace, []
    return tuple(np.mean(pace, axis=0).tolist()) if pace else (0.0, 0.0)

  def evaluation(self, step: int, result: Any) -> None:
    """Records an evaluation."""
    self._writer.evaluation(evaluation_record(step, result))

  def _record(self, step: int, values: Record) -> Record:
    bits = bits_per_byte(values["loss"], tokens_per_byte=self._tokens_per_byte)
    rest = {name: value for name, value in values.items() if name not in ("loss", "halted")}
    return {"step": step, "loss": values["loss"], "bits_per_byte": bits, **rest}

  def _report(self) -> None:
    window, self._window = self._window, []
    seconds = sum(record["time_step"] for record in window)
    speed = len(window) * self._tokens / seconds
    step, total = window[-1]["step"], self._config.train.steps
    self._writer.report({name: _mean(window, name) for name in window[0] if name != "time_elapsed"} | {
      "step": step, "total": total, "tokens_per_second": speed,
      "time_data_wait": sum(record["time_data_wait"] * record["time_step"] for record in window) / seconds,
      "mfu": speed * self._flops_per_token / self._peak_flops if self._peak_flops else None,
      "time_left": (total - step) * float(np.mean(self._recent_seconds))})


def evaluation_record(step: int, result: Any) -> Record:
  """The line of an evaluation, with the loss by position; only texts have word_perplexity and only tasks accuracy."""
  words = {} if result.word_perplexity is None else {"word_perplexity": result.word_perplexity}
  task = {} if result.accuracy is None else {"accuracy": result.accuracy}
  return {
    "step": step, "split": result.split, "protocol": result.protocol, "bits_per_byte": result.bits_per_byte,
    "nll_per_token": result.nll_per_token, **words, **task, "tokens": result.tokens, "time_eval": result.seconds,
    "buckets": [dataclasses.asdict(bucket) for bucket in result.buckets]}


def _mean(records: list[Record], name: str) -> float:
  return float(np.mean([record[name] for record in records]))


def peak_flops() -> float | None:
  """The peak of all devices together; None if no data sheet is known, as for CPUs."""
  chip = chip_of_kind(jax.devices()[0].device_kind)
  return chip.peak_flops * jax.device_count() if chip else None
