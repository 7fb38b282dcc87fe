"""What a server counts and times, in the text format of Prometheus."""

from __future__ import annotations

from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from lattice_jax.inference.serving.engine import Engine
from lattice_jax.inference.serving.request import Meter

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COMPILED = "backend_compile_duration"  # the end of the name of an event that JAX reports


class Metrics:
  """The metrics of one server, apart from those of others in the process; all names begin with lattice_."""

  def __init__(self) -> None:
    self.registry = CollectorRegistry()
    ProcessCollector(registry=self.registry)
    self.requests = self._counter(Counter, "requests", "Requests that ended, and why.", "finish")
    self.prompt_tokens = self._counter(Counter, "prompt_tokens", "Tokens of their prompts.")
    self.completion_tokens = self._counter(Counter, "completion_tokens", "Tokens that were written for them.")
    self.dropped = self._counter(Counter, "shadows_dropped", "Shadow requests that found no place in the queue.")
    self.first_token = self._seconds("time_to_first_token", "From a request to its first token.")
    self.gap = self._seconds("inter_token", "Between two deliveries of a stream.")
    self.rows = self._counter(Gauge, "rows", "Texts that can be written at once.")
    self.rows_in_use = self._counter(Gauge, "rows_in_use", "Rows that read a prompt or write a text.")
    self.queue = self._counter(Gauge, "queue_length", "Requests that wait for a row.")
    self.cache = self._counter(Gauge, "cache_bytes", "Bytes of the memory of all rows.")
    self.refused = Counter(
      "lattice_refused", "Requests that were answered with an error.", ["status"], registry=self.registry)
    self.compilations = Counter(
      "lattice_compilations", "Programs compiled since the server was ready.", registry=self.registry)

  def count_compilations(self) -> None:
    """From here on, of the whole process, until `close`."""
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def close(self) -> None:
    """Stops counting compilations."""
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def meter(self, arm: str) -> Meter:
    """What an engine of this arm reports to."""
    return _ArmMeter(self, arm)

  def watch(self, arm: str, engine: Engine) -> None:
    """Shows how full the engine is whenever somebody asks."""
    self.rows.labels(arm).set(engine.options.rows)
    self.cache.labels(arm).set(engine.cache_bytes)
    self.rows_in_use.labels(arm).set_function(lambda: engine.rows_in_use)
    self.queue.labels(arm).set_function(lambda: engine.queue_len)

  def text(self) -> bytes:
    return generate_latest(self.registry)

  def _counter(self, kind: Any, name: str, meaning: str, *labels: str) -> Any:
    return kind(f"lattice_{name}", meaning, ["arm", *labels], registry=self.registry)

  def _seconds(self, name: str, meaning: str) -> Histogram:
    return Histogram(f"lattice_{name}_seconds", meaning, ["arm"], buckets=_SECONDS, registry=self.registry)

  def _listen(self, event: str, seconds: float, **facts: Any) -> None:
    del seconds, facts
    if event.endswith(_COMPILED):
      self.compilations.inc()


class _ArmMeter(Meter):
  def __init__(self, metrics: Metrics, arm: str):
    self._requests = metrics.requests.labels
    self._arm = arm
    self._prompt_tokens, self._completion_tokens = (
      metrics.prompt_tokens.labels(arm), metrics.completion_tokens.labels(arm))
    self.first_token = metrics.first_token.labels(arm).observe
    self.gap = metrics.gap.labels(arm).observe

  def ended(self, finish: str, prompt_len: int, num_tokens: int) -> None:
    self._requests(self._arm, finish).inc()
    self._prompt_tokens.inc(prompt_len)
    self._completion_tokens.inc(num_tokens)
