"""A trial that W&B's agent can start instead of training: our writers, a checkpoint of one number, and no model.

--level: the value that its metric falls to. --patience: after so many steps it waits for a signal, once.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import time

from lattice_jax.writers import RunInfo, Writers

PATH, STEPS = pathlib.Path(__file__), 6


def main() -> None:
  flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
  workdir = pathlib.Path(flags["workdir"].replace("{run_id}", os.environ["WANDB_RUN_ID"]))
  workdir.mkdir(parents=True, exist_ok=True)
  signals = []
  signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
  checkpoint = workdir / "checkpoint"
  start = int(checkpoint.read_text()) if checkpoint.exists() else 0
  writers = Writers(("jsonl", "wandb"), RunInfo(workdir, start, {"config": {"name": "trial", "level": flags["level"]}}))
  for step in range(start + 1, STEPS + 1):
    writers.update({"step": step, "loss": 1.0})
    bits = float(flags["level"]) + 1 / step
    writers.evaluation({"step": step, "split": "validation", "protocol": "cold", "bits_per_byte": bits})
    writers.flush()
    checkpoint.write_text(str(step))
    if step == int(flags["patience"]) and not start:
      (workdir / "waits").write_text(json.dumps({"pid": os.getpid()}))
      wait_for(signals)
      writers.preempted()
      writers.close(128 + signals[0])
      sys.exit(128 + signals[0])
  writers.close()


def wait_for(signals):
  for _ in range(1200):
    if signals:
      return
    time.sleep(0.05)
  raise TimeoutError("no signal came")


if __name__ == "__main__":
  main()
