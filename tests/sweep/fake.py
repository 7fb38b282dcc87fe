"""A program that sweeps can run instead of training: milliseconds, and every way a trial can end."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys

PATH = pathlib.Path(__file__)


def main() -> None:
  flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
  workdir = pathlib.Path(flags["workdir"].replace("{run_id}", os.environ["WANDB_RUN_ID"]))
  workdir.mkdir(exist_ok=True)
  with (workdir / "calls").open("a") as calls:
    calls.write(json.dumps(flags) + "\n")
  if (workdir.parent / "wait").exists():
    signal.pause()
  if (workdir.parent / "fail").exists() and flags["size"] == (workdir.parent / "fail").read_text():
    sys.stderr.write("first words\ntoo large\n\n")
    sys.exit(3)
  write_run(workdir, float(flags["size"]), int(flags["seed"]) if "seed" in flags else 0)


def write_run(workdir: pathlib.Path, size: float, seed: int) -> None:
  """The files of a training that ended: best at size 3, worse by a tenth for each seed."""
  bits = 2 + abs(size - 3) + seed / 10
  buckets = [
    {"start": 0, "stop": 8, "tokens": 8, "bits_per_byte": bits + 1},
    {"start": 8, "stop": 16, "tokens": 30, "bits_per_byte": bits},
    {"start": 16, "stop": 32, "tokens": 10, "bits_per_byte": bits - 0.4},
    {"start": 32, "stop": 64, "tokens": 0, "bits_per_byte": None}]
  evaluation = {"step": 1, "split": "validation", "protocol": "cold", "bits_per_byte": bits, "buckets": buckets}
  update = {"step": 1, "loss": 3.0, "tokens_per_second": 100.0}
  lines = [evaluation | {"step": 0, "bits_per_byte": 9}, update, evaluation]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (workdir / "run.json").write_text(json.dumps({"unit": "byte", "parameters": 1000, "git_commit": "abc"}))


if __name__ == "__main__":
  main()
