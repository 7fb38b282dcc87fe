"""Measures what several updates in one dispatch are worth where two processes train together.

python scripts/bench_hosts.py --out=hosts [--dispatches=1,4,16] [--rounds=3] [--steps=240]

Two real processes of train.py find each other on this machine and train the quickstart's smoke model, once for each
number of updates a dispatch, in turn, so that other load meets all alike. Prints and writes to OUT/dispatch.md, for
each number, the median over rounds of the tokens per second of the second half of the updates, and of the share of the
time in which process 0 waited for data. Takes a minute a run on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive, positives
from lattice_jax.commands.run import run_script
from scripts.check_hosts import free_address

_ROOT = Path(__file__).resolve().parents[1]
_LIMIT = 900


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--out", type=path, required=True, help="folder for the table")
  parser.add_argument("--dispatches", type=positives, default=(1, 4, 16), help="updates in one dispatch")
  parser.add_argument("--rounds", type=positive, default=3, help="runs of each")
  parser.add_argument("--steps", type=positive, default=240, help="updates of a run")
  arguments = parser.parse_args()
  found: dict[int, list[tuple[float, float]]] = {number: [] for number in arguments.dispatches}
  for _ in range(arguments.rounds):
    for number in arguments.dispatches:
      found[number].append(measure(number, arguments.steps))
      print(f"{number} updates a dispatch: {found[number][-1][0]:,.0f} tokens/s", flush=True)
  arguments.out.mkdir(parents=True, exist_ok=True)
  (arguments.out / "dispatch.md").write_text(page(found, arguments.steps), encoding="utf-8")
  return 0


def measure(per_dispatch: int, steps: int) -> tuple[float, float]:
  """(tokens a second, share of the time that process 0 waited for data), medians of the second half of a run."""
  address = free_address()
  with tempfile.TemporaryDirectory() as folder:
    processes = [subprocess.Popen(
      [sys.executable, "train.py", "--config=configs/quickstart.py:smoke", f"--workdir={folder}", "--distributed",
       f"--coordinator={address}", "--num_processes=2", f"--process={number}", f"--config.train.steps={steps}",
       f"--config.train.save_every={steps}", "--config.train.log_every=60",
       f"--config.train.steps_per_dispatch={per_dispatch}"],
      cwd=_ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"JAX_PLATFORMS": "cpu"}) for number in (0, 1)]
    statuses = [process.wait(_LIMIT) for process in processes]
    if any(statuses):
      raise ValueError("the processes did not end well; the lines above say why.")
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    late = [line for line in lines if "loss" in line and line["step"] > steps // 2]
  return tuple(statistics.median(line[name] for line in late) for name in ("tokens_per_second", "time_data_wait"))


def page(found: dict[int, list[tuple[float, float]]], steps: int) -> str:
  rows = []
  for number, runs in found.items():
    speeds, waits = zip(*runs, strict=True)
    rows.append(
      f"| {number} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f} to {max(speeds):,.0f} | "
      f"{statistics.median(waits):.1%} |")
  rounds = len(next(iter(found.values())))
  return "\n".join([
    "# Updates in one dispatch, with two processes", "",
    f"`python scripts/bench_hosts.py --out=docs/results/hosts --rounds={rounds} --steps={steps}` printed this: two",
    f"processes of one machine with {os.cpu_count()} cores, the quickstart's smoke model, 1,024 tokens an update; the",
    f"second half of each run, the median of {rounds} runs. The cores that compute dispatch too: nothing goes on",
    "beside an update.", "",
    "| `train.steps_per_dispatch` | tokens a second | least and most | process 0 waits for data |", "|---|---|---|---|",
    *rows, ""])


if __name__ == "__main__":
  run_script(main)
