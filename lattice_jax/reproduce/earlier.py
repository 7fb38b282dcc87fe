"""Results that were made before fingerprints were recorded: shown beside a row, and never counted as its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.stored_value import look_up

_FOLDER = "docs/results"


@dataclass(frozen=True)
class Earlier:
  """A number in a file of docs/results, times `factor`, over that at `over`. page: the folder, which says how."""

  page: str
  file: str
  steps: tuple[Any, ...]
  over: tuple[Any, ...] = ()
  factor: float = 1.0

  def value(self, root: Path) -> float:
    """Raises ValueError or LookupError where it is not there."""
    path = root / _FOLDER / self.page / self.file
    return self.factor * look_up(path, self.steps) / (look_up(path, self.over) if self.over else 1)


def _vq(variant: str) -> Earlier:
  return Earlier("ablation_vq", "table.jsonl", (
    {"config": f"configs/ablation_vq.py:{variant}"}, "eval_validation_cold/bits_per_dim mean"))


def _speed(head: str, length: int, mode: str = "fwd+bwd") -> Earlier:
  of = {"head": head, "T": length, "mode": mode}
  return Earlier("bench_vq_cpu", "bench.jsonl", ({**of, "case": "softmax T×T"}, "median"),
                 ({**of, "case": "vq input_scan"}, "median"))


def _anchor(reader: str, how: str = "one call, no cache") -> Earlier:
  return Earlier("anchors", "report.json", ("text", "readings", {"reader": reader, "how": how}, "nats_per_token"))


EARLIER = {
  "vq_codes/s256": _vq("codes64"), "vq_codes/s512": _vq("base"), "vq_codes/s1024": _vq("codes256"),
  "vq_cache/off": _vq("nocache"), "vq_cache/on": _vq("codes64"),
  "vq_throughput/shga_2048": _speed("shga", 2048), "vq_throughput/shga_8192": _speed("shga", 8192),
  "vq_throughput/shga_32768": _speed("shga", 32_768, "fwd"),
  "vq_throughput/mqa_2048": _speed("mqa", 2048), "vq_throughput/mqa_8192": _speed("mqa", 8192),
  "vq_throughput/mha_2048": _speed("mha", 2048), "vq_throughput/mha_8192": _speed("mha", 8192),
  "anllm_modes/base_full": _anchor("full"), "anllm_modes/ep_full": _anchor("after: full"),
  "anllm_modes/base_masked": _anchor("masked"), "anllm_modes/masked": _anchor("after: masked"),
  "anllm_modes/ac_reduced": _anchor("after: masked", "reduced cache, token by token"),
  "anllm_cache/ep_bytes": Earlier(
    "anchors", "report.json", ("cache", "rules", {"rule": "punctuation"}, "saved"), factor=100),
  "anllm_cache/ac_bytes": Earlier(
    "anchors", "report.json", ("cache", "rules", {"rule": "every:10"}, "saved"), factor=100),
  **{f"local_equal_memory/loss_{arm}": Earlier(
    "local_windows_long", "report.json", ("loss", "arms", {"name": arm}, "above_full", 0))
    for arm in ("uniform", "chosen", "retrieval_heads")},
  **{f"local_equal_memory/latency_{arm}": Earlier(
    "local_windows_long", "report.json", ("latency", {"length": 8192, "batch": 1}, "arms", {"name": arm}, "saved_p50"),
    factor=100) for arm in ("uniform", "chosen")}}
