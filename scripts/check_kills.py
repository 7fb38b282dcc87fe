"""Kills a training run with SIGKILL at random moments, restarts it, and compares it with an uninterrupted run.

python scripts/check_kills.py --kills=50 [--seed=0] [--workdir=runs/kills]

The moments are drawn uniformly from the whole life of a process: imports, data, compilation, updates, evaluations and
saves. Life is measured in processor time, which does not depend on other load. A run that reaches its end is compared,
metric by metric and bit by bit, and the next one begins. Prints one line per kill and a summary; the exit status is 1
if anything differs. Linux only; takes about eight seconds per kill on two cores.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive, seed
from lattice_jax.commands.run import run_script
from lattice_jax.inspect.same_run import differences, timeless_lines

_ROOT = Path(__file__).resolve().parents[1]
_STEPS = 72
_OWN = ("unbroken", "stderr.txt")  # in its workdir, beside run_0, run_1, …
_LOOK_EVERY = 0.005  # seconds
_COMMAND = (
  sys.executable, "train.py", "--config=configs/quickstart.py:smoke", f"--config.train.steps={_STEPS}",
  "--config.train.save_every=4", "--config.train.eval_every=12", "--config.train.writers=('jsonl','tensorboard')",
  "--config.model.dropout=0.1", "--config.data.update_len=32")


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--kills", type=positive, default=50, help="number of processes to kill")
  parser.add_argument("--seed", type=seed, default=0, help="seed of the moments")
  parser.add_argument("--workdir", type=path, default=Path("runs/kills"), help="emptied first")
  arguments = parser.parse_args()
  others = [path.name for path in arguments.workdir.glob("*") if not path.match("run_*") and path.name not in _OWN]
  if others:
    raise ValueError(
      f"--workdir={arguments.workdir} is emptied first, and holds {others[0]}; name another folder.")
  shutil.rmtree(arguments.workdir, ignore_errors=True)
  arguments.workdir.mkdir(parents=True)
  unbroken = arguments.workdir / "unbroken"
  run(unbroken, None)  # compiles
  shutil.rmtree(unbroken)
  life = run(unbroken, None)
  print(f"an unbroken run of {_STEPS} updates takes {life:.1f} s of processor time")
  return kill_and_compare(arguments.workdir, unbroken, life, arguments.kills, random.Random(arguments.seed))


def kill_and_compare(folder: Path, unbroken: Path, life: float, kills: int, draw: random.Random) -> int:
  """Runs until `kills` processes were killed and the last run has ended. Returns the exit status."""
  killed, ended, found = 0, 0, []
  while True:
    workdir = folder / f"run_{ended}"
    moment = draw.uniform(0, life) if killed < kills else None
    if run(workdir, moment) is None:
      killed += 1
      print(f"kill {killed:3d} after {moment:5.2f} s: run {ended}, {left_by(workdir)}", flush=True)
      continue
    different = differences(workdir, unbroken)
    print("\n".join([f"run {ended} reached its end: {'differs' if different else 'the same'}", *different]), flush=True)
    found += different
    ended += 1
    if killed == kills:
      break
  print(f"{killed} kills over {ended} runs: {len(found)} differences from the unbroken run, in metrics or final bits")
  return 1 if found else 0


def run(workdir: Path, kill_after: float | None) -> float | None:
  """Processor seconds until the end of training, or None where the process was killed first."""
  with (workdir.parent / "stderr.txt").open("w+") as errors:
    process = subprocess.Popen(
      [*_COMMAND, f"--workdir={workdir.resolve()}"], cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=errors)
    used = 0.0
    while process.poll() is None:
      used = processor_seconds(process)
      if kill_after is not None and used >= kill_after:
        process.kill()
        process.wait()
      time.sleep(_LOOK_EVERY)
    if process.returncode not in (0, -signal.SIGKILL):
      errors.seek(0)
      raise SystemExit(f"training in {workdir} failed with status {process.returncode}: {errors.read()}")
  return used if process.returncode == 0 else None


def processor_seconds(process: subprocess.Popen) -> float:
  """The processor time of all threads of a process."""
  fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def left_by(workdir: Path) -> str:
  """What a killed process left on disk."""
  names = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
  whole = [name for name in names if name.isdigit()]
  partial = f"; {len(names) - len(whole)} half-written" if names != whole else ""
  return f"{len(timeless_lines(workdir)):3d} metric lines, saved: {', '.join(whole) or 'none'}{partial}"


if __name__ == "__main__":
  run_script(main)
