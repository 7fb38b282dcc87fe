"""Readers of what users write: overrides of a config, sweeps, and requests over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

from lattice_jax.config import Config
from lattice_jax.config_text import apply_overrides
from lattice_jax.inference.serving.wire import Refusal, parse_chat, parse_completion
from lattice_jax.sweep.search import make_search
from lattice_jax.sweep.sweep_file import read_sweep
from tests.fuzz.harness import Reader

_OVERRIDES = (
  "model.vq.codes=128", "model.pattern=vq,attention", "model.dropout=0.1", "model.vq={'codes': 64}",
  "data.source=synthetic", "train.writers=('jsonl',)", "mesh.data=-1", "optimizer.learning_rate=1e-3")
_SWEEP = """program: train.py
method: grid
metric: {name: eval_validation_cold/bits_per_byte, goal: minimize}
parameters:
  config: {value: configs/quickstart.py}
  config.model.vq.codes: {values: [64, 128]}
  config.optimizer.learning_rate: &rate {distribution: q_uniform, min: 0.1, max: 0.3, q: 0.1}
  config.train.seed: {values: [1, 2]}
command: ["${env}", "${interpreter}", "${program}", "${args}"]
"""
_RANDOM = """program: train.py
method: random
run_cap: 3
metric: {name: eval_validation_cold/bits_per_byte}
parameters:
  config.optimizer.learning_rate: {distribution: log_uniform_values, min: 1.0e-4, max: 1.0e-2}
  config.train.steps: {min: 1, max: 9}
"""


def make_overrides(folder: Path) -> tuple[str, ...]:
  (folder / "overrides").write_text("\n".join(_OVERRIDES))
  return ("overrides",)


def read_overrides(folder: Path) -> None:
  """One override a line, as they stand on a command line: without zero bytes, and in the bytes of the file system."""
  raw = (folder / "overrides").read_bytes().replace(b"\0", b"")
  apply_overrides(Config(), raw.decode(errors="surrogateescape").split("\n"))


def make_sweep(folder: Path) -> tuple[str, ...]:
  (folder / "grid.yaml").write_text(_SWEEP)
  (folder / "random.yaml").write_text(_RANDOM)
  return "grid.yaml", "random.yaml"


def read_sweeps(folder: Path) -> None:
  for path in sorted(folder.glob("*.yaml")):
    sweep = read_sweep(path)
    if sweep.method == "grid":
      make_search(sweep, folder, 0)


def make_requests(folder: Path) -> tuple[str, ...]:
  common = {"model": "tiny", "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "stop": ["a"], "seed": 1}
  requests = {
    "completion": {**common, "prompt": [1, 2, 3], "stream": True, "stream_options": {"include_usage": True}},
    "chat": {**common, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "n": 1}}
  for name, content in requests.items():
    (folder / name).write_text(json.dumps(content))
  return tuple(requests)


def read_requests(folder: Path) -> None:
  for name, parse in (("completion", parse_completion), ("chat", parse_chat)):
    try:
      parse((folder / name).read_bytes())
    except Refusal as error:
      raise ValueError(str(error)) from error


_CONFIG = ("lattice_jax.config_text", "lattice_jax.config_checks", "lattice_jax.domains", "lattice_jax.fields")
READERS = (
  Reader("overrides", make_overrides, read_overrides, _CONFIG, limit=1 << 10),
  Reader("sweep", make_sweep, read_sweeps, ("lattice_jax.sweep", "yaml"), limit=1 << 12),
  Reader("request", make_requests, read_requests, ("lattice_jax.inference.serving.wire", "lattice_jax.domains")),
)
