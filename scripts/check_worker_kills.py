"""Kills one of several processes that train together, at random moments, and lets them all start again.

python scripts/check_worker_kills.py --out=kills [--kills=20] [--processes=4] [--seed=0] [--workdir=runs/worker_kills]

The processes are real and find each other on this machine. The moments are drawn uniformly from the life of an
unbroken run after its imports: its start, compilation, updates, evaluations and saves. After each kill the others must
end within a minute, and one of them must name the process that was killed; then the same command begins again, until
the run has reached its end, where every metric line and every bit of its state must be those of the unbroken run. If
kills are left, a new run begins. Prints a row for each kill and writes the table to OUT/kills.md; the exit status is 1
if anything was otherwise. Linux only; takes about a minute a kill on two cores.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import re
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive, seed
from lattice_jax.commands.run import run_command, run_script
from scripts.check_hosts import free_address

_ROOT = Path(__file__).resolve().parents[1]
_LIMIT = 60.0  # seconds after a kill
_LOOK_EVERY = 0.02
_COMMAND = (
  "train.py", "--config=configs/quickstart.py:smoke", "--distributed", "--config.train.steps=36",
  "--config.train.save_every=4", "--config.train.eval_every=12", "--config.train.log_every=2",
  "--config.train.writers=('stdout','jsonl')", "--config.model.dropout=0.1")

Process = multiprocessing.process.BaseProcess


@dataclass(frozen=True)
class Kill:
  """seconds: until the others had ended, None if one had not. during: the last line that process 0 had said.

  is_named: whether another process named the one that was killed.
  """

  process: int
  moment: float
  during: str
  seconds: float | None
  is_named: bool
  sentences: tuple[str, ...]

  @property
  def is_good(self) -> bool:
    return self.seconds is not None and self.is_named and not any("Traceback" in said for said in self.sentences)

  def row(self, number: int) -> str:
    ended = "still there" if self.seconds is None else f"{self.seconds:.1f} s"
    named = "yes" if self.is_named else f"no: {' / '.join(self.sentences)}"
    return f"| {number} | {self.process} | {self.moment:.1f} s | {self.during} | {ended} | {named} |"


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--out", type=path, required=True, help="folder for the table")
  parser.add_argument("--kills", type=positive, default=20, help="number of kills")
  parser.add_argument("--processes", type=positive, default=4, help="processes that train together")
  parser.add_argument("--seed", type=seed, default=0, help="seed of the moments")
  parser.add_argument("--workdir", type=path, default=_ROOT / "runs" / "worker_kills", help="a new folder for the runs")
  arguments = parser.parse_args()
  folder = arguments.workdir
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"--workdir={folder} is not empty; name a new folder.")
  if arguments.processes < 2:
    raise ValueError("--processes=1 leaves none that could tell of a kill; give 2 or more.")
  importlib.import_module("lattice_jax.training.loop")
  warnings.simplefilter("ignore")  # JAX warns that a fork lacks its threads, but none has started yet
  os.chdir(_ROOT)
  for name in ("compiles", "unbroken"):
    begun = time.monotonic()
    finish(folder / name, arguments.processes)
    life = time.monotonic() - begun
  print(f"an unbroken run of {arguments.processes} processes takes {life:.1f} s", flush=True)
  kills, found, runs = kill_and_compare(folder, arguments, life)
  arguments.out.mkdir(parents=True, exist_ok=True)
  (arguments.out / "kills.md").write_text(page(arguments, kills, found, runs, life), encoding="utf-8")
  print(summary(kills, found, runs), *found, sep="\n")
  return 0 if not found and all(kill.is_good for kill in kills) else 1


def kill_and_compare(folder: Path, arguments, life: float) -> tuple[list[Kill], list[str], int]:
  """The kills, differences of ended runs from the unbroken one, and the number of runs that reached their end."""
  draw, kills, found, runs = random.Random(arguments.seed), [], [], 0
  while len(kills) < arguments.kills or (folder / f"run_{runs}").exists():
    workdir = folder / f"run_{runs}"
    if len(kills) == arguments.kills:
      finish(workdir, arguments.processes)
    else:
      kill = kill_one(workdir, arguments.processes, draw.randrange(arguments.processes), draw.uniform(0, life))
      if kill is not None:
        kills.append(kill)
        print(kill.row(len(kills)), flush=True)
        continue
    found += in_a_process(workdir, folder / "unbroken")
    print(f"run {runs} reached its end", flush=True)
    runs += 1
  return kills, found, runs


def start(workdir: Path, count: int) -> list[Process]:
  workdir.mkdir(parents=True, exist_ok=True)
  address, context = free_address(), multiprocessing.get_context("fork")

  def call(number: int) -> None:
    for stream, name in ((1, "out"), (2, "errors")):
      with (workdir / f"{name}_{number}").open("w") as file:
        os.dup2(file.fileno(), stream)
    from lattice_jax.commands import train  # its flags are those of the child alone

    os.environ["JAX_PLATFORMS"] = "cpu"
    run_command(train.main, [
      *_COMMAND, f"--workdir={workdir.resolve()}", f"--coordinator={address}", f"--num_processes={count}",
      f"--process={number}"])

  processes = [context.Process(target=call, args=(number,)) for number in range(count)]
  for process in processes:
    process.start()
  return processes


def finish(workdir: Path, count: int) -> None:
  """Trains to the end."""
  processes = start(workdir, count)
  for process in processes:
    process.join()
  if any(process.exitcode for process in processes):
    raise ValueError(f"training in {workdir} failed: {' / '.join(sentences(workdir, range(count)))}")


def kill_one(workdir: Path, count: int, victim: int, moment: float) -> Kill | None:
  """Starts the processes and kills one after so many seconds; None if all had ended by then."""
  processes = start(workdir, count)
  try:
    begun = time.monotonic()
    while time.monotonic() - begun < moment and processes[victim].is_alive():
      time.sleep(_LOOK_EVERY)
    during = last_line(workdir / "out_0")
    processes[victim].kill()
    killed = time.monotonic()
    others = [number for number in range(count) if number != victim]
    while any(processes[number].is_alive() for number in others) and time.monotonic() - killed < _LIMIT:
      time.sleep(_LOOK_EVERY)
    is_over = not any(processes[number].is_alive() for number in others)
    seconds = time.monotonic() - killed if is_over else None
  finally:  # also where the check itself is stopped
    for process in processes:
      process.kill()
      process.join()
  if processes[victim].exitcode != -signal.SIGKILL:
    if any(process.exitcode for process in processes):
      raise ValueError(f"training in {workdir} failed: {' / '.join(sentences(workdir, range(count)))}")
    return None
  if not any(processes[number].exitcode for number in others):
    return None  # the others had ended, and the run with them
  said = sentences(workdir, others)
  is_named = any(re.search(rf"\bprocess {victim}\b", sentence) for sentence in said)
  return Kill(victim, moment, during, seconds, is_named, said)


def sentences(workdir: Path, numbers) -> tuple[str, ...]:
  return tuple((workdir / f"errors_{number}").read_text().strip().replace("\n", " ") for number in numbers)


def last_line(path: Path) -> str:
  lines = path.read_text().strip().splitlines() if path.exists() else []
  return re.sub(r"\s+", " ", lines[-1])[:60].replace("|", "/") if lines else "nothing said yet"


def in_a_process(workdir: Path, unbroken: Path) -> list[str]:
  """`differences` of the two, found in a process of its own: reading states starts JAX."""
  from lattice_jax.inspect.same_run import differences  # --help need not wait for JAX

  answers, answer = multiprocessing.get_context("fork").Pipe(duplex=False)
  process = multiprocessing.get_context("fork").Process(
    target=lambda: answer.send([*differences(workdir, unbroken), *doubled(workdir)]))
  process.start()
  answer.close()
  found = answers.recv()
  process.join()
  return found


def doubled(workdir: Path) -> list[str]:
  from lattice_jax.inspect.same_run import timeless_lines

  lines = timeless_lines(workdir)
  return [f"{workdir} has a metric line twice: {line}." for i, line in enumerate(lines) if line in lines[:i]]


def summary(kills: list[Kill], found: list[str], runs: int) -> str:
  ended = [kill.seconds for kill in kills if kill.seconds is not None]
  return (
    f"{len(kills)} kills over {runs} runs: the others ended within {max(ended, default=0):.1f} s in {len(ended)} of "
    f"{len(kills)}; the killed process was named in {sum(kill.is_named for kill in kills)}; "
    f"{len(found)} differences from the unbroken run.")


def page(arguments, kills: list[Kill], found: list[str], runs: int, life: float) -> str:
  return "\n".join([
    "# Kills of one of several processes", "",
    f"`python scripts/check_worker_kills.py --out={arguments.out} --kills={arguments.kills}",
    f"--processes={arguments.processes} --seed={arguments.seed}` printed this: real processes of `train.py` on one",
    f"machine, over the loopback, whose unbroken run takes {life:.0f} s. Moments count from the start of the",
    "processes, imports apart.", "", summary(kills, found, runs), *found, "",
    "| kill | process | after | process 0 had said last | the others ended after | the killed one was named |",
    "|---|---|---|---|---|---|", *(kill.row(number) for number, kill in enumerate(kills, 1)), ""])


if __name__ == "__main__":
  run_script(main)
