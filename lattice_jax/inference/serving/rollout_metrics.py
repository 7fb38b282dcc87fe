"""What /metrics says of a rollout: its stage, the treatment's share, each gate, and what became of comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lattice_jax.inference.rollout.decider import STATUSES
from lattice_jax.inference.rollout.gates import GO, STOP, WAIT

_TRAFFIC = {
  "comparisons_dropped": "Compared units that found no place to wait for their quality.",
  "not_recorded": "Units that the log did not take, or at which the comparison failed."}


class RolloutCollector(Collector):
  """Asks for a snapshot, as of `LiveRollout.snapshot`, whenever metrics are asked for; to be registered."""

  def __init__(self, snapshot: Callable[[], dict[str, Any]]):
    self._snapshot = snapshot

  def collect(self) -> Iterator[Metric]:
    snapshot = self._snapshot()
    yield _one_of("stage", "Which stage the rollout is in.", [stage["name"] for stage in snapshot["plan"]],
                  snapshot["stage"])
    yield _one_of("status", "What the rollout does.", STATUSES, snapshot["status"])
    yield _gauge("treatment_share", "Share of the units that the treatment answers.", snapshot["percent"] / 100)
    yield _counter("units", "Units recorded, with canaries.", snapshot["units"])
    answers = GaugeMetricFamily(
      "lattice_rollout_gate_answer", "What each gate says.", labels=("gate", "answer"))
    for gate in snapshot["gates"]:
      for answer in (GO, STOP, WAIT):
        answers.add_metric((gate["name"], answer), float(gate["answer"] == answer))
    yield answers
    for name in ("estimate", "lower", "upper", "threshold"):
      figures = GaugeMetricFamily(f"lattice_rollout_gate_{name}", f"Of each gate, the {name}.", labels=("gate",))
      for gate in snapshot["gates"]:
        if gate[name] is not None:
          figures.add_metric((gate["name"],), gate[name])
      yield figures
    yield _gauge("comparisons_waiting", "Units that wait for their quality.", snapshot["traffic"]["waiting"])
    for name, meaning in _TRAFFIC.items():
      yield _counter(name, meaning, snapshot["traffic"][name])


def _one_of(name: str, meaning: str, values: tuple[str, ...] | list[str], value: str) -> GaugeMetricFamily:
  """A series for each value, of which one is 1."""
  family = GaugeMetricFamily(f"lattice_rollout_{name}", meaning, labels=(name,))
  for each in values:
    family.add_metric((each,), float(each == value))
  return family


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
  return GaugeMetricFamily(f"lattice_rollout_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> CounterMetricFamily:
  return CounterMetricFamily(f"lattice_rollout_{name}", meaning, value=value)
