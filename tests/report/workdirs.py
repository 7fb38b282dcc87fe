"""Workdirs for tests of reports, with every file that a report reads."""

from __future__ import annotations

import json
import math

import numpy as np

from lattice_jax.files import to_jsonl

CONFIG = {
  "name": "tiny", "model": {"dim": 16, "pattern": ["lattice", "vq", "anchor", "attention"]},
  "data": {"source": "books_sample"}, "train": {"steps": 40, "seed": 0}}
BUCKETS = [{"start": 0, "stop": 8, "tokens": 8, "bits_per_byte": 3.5},
           {"start": 8, "stop": 16, "tokens": 8, "bits_per_byte": 2.5},
           {"start": 16, "stop": 32, "tokens": 0, "bits_per_byte": None}]


def update(step, loss, **facts):
  return {"step": step, "loss": loss, "bits_per_byte": loss and loss / math.log(2), "grad_norm": 1 / step,
          "learning_rate": 1e-3 * step, "tokens_per_second": 1000.0 + step, "slot_step": 0.5,
          "time_elapsed": 6.0 * step} | facts


def evaluation(step, bits, **facts):
  return {"step": step, "split": "validation", "protocol": "cold", "bits_per_byte": bits, "tokens": 16,
          "buckets": BUCKETS} | facts


def write_run(folder, *, steps=40, floor=1.0, config=CONFIG, tail=""):
  """A run whose loss falls to `floor`, with an evaluation half way and at the end. tail: after the last whole line."""
  folder.mkdir(parents=True)
  lines = [update(step, floor + 2 / step) for step in range(1, steps + 1)]
  lines.insert(steps // 2, evaluation(steps // 2, floor + 1))
  lines.append(evaluation(steps, floor + 0.5))
  (folder / "metrics.jsonl").write_text(to_jsonl(lines) + tail)
  write_description(folder, config)
  return folder


def write_description(folder, config=CONFIG):
  (folder / "run.json").write_text(json.dumps({
    "config": config, "unit": "byte", "parameters": 12345, "git_commit": "abc123", "devices": ["cpu"],
    "versions": {"jax": "0.10.2"}, "command": ["train.py", "--config=a b"], "data_fingerprint": "f00", "history": []}))


def write_results(folder):
  """What eval.py, audit.py, anchors.py and plot.py leave in a workdir."""
  (folder / "eval_test_cold_1.json").write_text(json.dumps({
    "step": 40, "split": "test", "protocol": "cold", "bits_per_byte": 1.625, "seq_len": 32, "tokens": 16,
    "overrides": ["model.vq.cache=False"], "word_perplexity": 20.5, "tokens_per_second": 500.0, "buckets": BUCKETS}))
  (folder / "sample_1.txt").write_text("The <b>end</b> & </script><script>window.broken = 1</script>\n" + "x" * 5000)
  wave_THM = np.abs(np.sin(np.arange(24 * 2 * 3) / 5)).reshape(24, 2, 3)
  layers = [{"name": "layer 1", "turn_THM": wave_THM.tolist(), "keep_THM": (1 - wave_THM).tolist(),
             "similarity_HMM": np.eye(3)[None].repeat(2, 0).tolist()}]
  write_json(folder / "audit" / "audit.json", {"text": "</script><script>window.broken = 2</script>", "layers": layers})
  write_json(folder / "codebook.json", {
    "step": 40, "row": "layer", "rows": ["1", "2"], "share_RM": [[0.5, 0.25, 0.25, 0.0], [0.25] * 4]})
  write_json(folder / "anchors" / "report.json", {
    "facts": {"source": "books_sample", "split": "test"},
    "attention": {"layers": [0, 1], "columns": ["own segment", "1"], "by_layer": [[0.75, 0.25], [0.5, 0.5]]}})
  task = folder / "passkey_1"
  (task / "kept").mkdir(parents=True)
  np.save(task / "kept" / "64_lagkv%3Aratio=0.25.npy", np.linspace(0, 1, 16, dtype=np.float16).reshape(2, 1, 8))
  rows = [{"cache": cache, "length": 64, "depth": depth, "token_accuracy": accuracy}
          for cache, depth, accuracy in (("full", 0.0, 1.0), ("full", 1.0, 1.0), ("lagkv:ratio=0.25", 0.0, 0.5))]
  (task / "table.jsonl").write_text(to_jsonl([*rows, rows[0] | {"depth": None}]))


def write_json(path, content):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content))
