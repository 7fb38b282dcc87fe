"""Kills a training run with SIGKILL at random moments, restarts it, and compares it with an uninterrupted run.

python scripts/check_kills.py --kills=200 [--seed=0] [--workdir=runs/kills]

The moments are drawn uniformly from the life of a process after its imports, which touch no file: data, compilation,
updates, evaluations and saves. So every process is a fork of this one, which has imported what training needs. Life is
measured in processor time, which does not depend on other load. After each kill the metric lines on disk
must be the first ones of the uninterrupted run, each once, and a run that reaches its end must equal it in every line
and every bit of its state; then the next one begins. Prints one line per kill and a summary; the exit status is 1 if
anything differs. A check that was stopped goes on from its last kill (kills.jsonl in its workdir). Linux only; takes
about six seconds of processor time per kill.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive, seed
from lattice_jax.commands.run import run_command, run_script
from lattice_jax.files import Record, append_jsonl, read_jsonl

_ROOT = Path(__file__).resolve().parents[1]
_STEPS = 72
_RECORDS = "kills.jsonl"
_LOOK_EVERY = 0.005  # seconds
_COMMAND = (
  "train.py", "--config=configs/quickstart.py:smoke", f"--config.train.steps={_STEPS}",
  "--config.train.save_every=4", "--config.train.eval_every=12", "--config.train.writers=('jsonl','tensorboard')",
  "--config.model.layers=1", "--config.model.dim=32", "--config.model.dropout=0.1", "--config.data.source=synthetic",
  "--config.data.update_len=32", "--cpu_devices=1")


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--kills", type=positive, default=200, help="number of processes to kill")
  parser.add_argument("--seed", type=seed, default=0, help="seed of the moments")
  parser.add_argument("--workdir", type=path, default=Path("runs/kills"), help="new, or that of a check to go on with")
  arguments = parser.parse_args()
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # most programs here take less than that
  importlib.import_module("lattice_jax.training.loop")
  warnings.simplefilter("ignore")  # JAX warns that a fork lacks its threads, but none has started yet
  folder = arguments.workdir.resolve()
  os.chdir(_ROOT)
  records = read_jsonl(folder / _RECORDS)
  if not records:
    records = [begin(folder, arguments.seed)]
  if records[0]["seed"] != arguments.seed:
    raise ValueError(
      f"--workdir={folder} holds a check with --seed={records[0]['seed']}; go on with that, or name another folder.")
  print(f"an unbroken run of {_STEPS} updates takes {records[0]['life']:.1f} s of processor time", flush=True)
  kill_and_compare(folder, records, arguments.kills)
  return summarize(read_jsonl(folder / _RECORDS))


def begin(folder: Path, draw_seed: int) -> Record:
  """The unbroken run and how long it lives, in seconds of processor time."""
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"--workdir={folder} holds files but no {_RECORDS}; name a new folder.")
  for name in ("compiles", "unbroken"):
    (folder / name).mkdir(parents=True)
    life = run(folder / name, None)
  append_jsonl(folder / _RECORDS, [{"seed": draw_seed, "life": life}])
  return {"seed": draw_seed, "life": life}


def kill_and_compare(folder: Path, records: list[Record], kills: int) -> None:
  """Runs until `kills` processes were killed and the last run has ended; appends what happened to each process."""
  life, draw = records[0]["life"], random.Random(records[0]["seed"])
  killed = sum(1 for record in records if "moment" in record)
  ended = len(records) - 1 - killed
  for _ in range(killed):
    draw.uniform(0, life)
  is_over = killed >= kills and "moment" not in records[-1]
  while not is_over:
    workdir = folder / f"run_{ended}"
    moment = draw.uniform(0, life) if killed < kills else None
    reached_end = run(workdir, moment) is not None
    record = found_in(workdir, folder / "unbroken", reached_end=reached_end)
    if reached_end:
      append_jsonl(folder / _RECORDS, [{"run": ended, **record}])
      print(f"run {ended} reached its end: {told(record)}", flush=True)
      ended += 1
    else:
      killed += 1
      append_jsonl(folder / _RECORDS, [{"kill": killed, "moment": moment, "run": ended, **record}])
      print(f"kill {killed:3d} after {moment:5.2f} s: run {ended}, {left_by(workdir)}; {told(record)}", flush=True)
    is_over = reached_end and killed >= kills


def found_in(workdir: Path, unbroken: Path, *, reached_end: bool) -> dict[str, Any]:
  """Counts of lost, doubled and diverging metric lines, and of arrays whose last bits differ."""
  from lattice_jax.inspect.same_run import line_faults, timeless_lines  # --help need not wait for JAX

  lost, doubled, diverging = line_faults(timeless_lines(workdir), timeless_lines(unbroken), is_whole=reached_end)
  arrays = count_different(workdir, unbroken) if reached_end else 0
  return {"lost": lost, "doubled": doubled, "diverging": diverging, "arrays": arrays}


def told(record: dict[str, Any]) -> str:
  faults = [f"{record[name]} {name}" for name in ("lost", "doubled", "diverging", "arrays") if record[name]]
  return ", ".join(faults) or "the same"


def summarize(records: list[Record]) -> int:
  """Prints the totals. Returns the exit status."""
  kills = [record for record in records if "moment" in record]
  total = Counter()
  for record in records[1:]:
    total.update({name: record[name] for name in ("lost", "doubled", "diverging", "arrays")})
  print(
    f"{len(kills)} kills over {len(records) - 1 - len(kills)} runs: {total['lost']} lost, {total['doubled']} doubled "
    f"and {total['diverging']} diverging metric lines; {total['arrays']} arrays differ after the last update")
  return 1 if any(total.values()) else 0


def run(workdir: Path, kill_after: float | None) -> float | None:
  """Processor seconds until the end of training, or None where the process was killed first."""
  said = workdir.parent / "stderr.txt"
  process = forked(_train, f"--workdir={workdir.resolve()}", said=said)
  used = 0.0
  try:
    while process.is_alive():
      used = processor_seconds(process.pid)
      if kill_after is not None and used >= kill_after:
        break
      time.sleep(_LOOK_EVERY)
  finally:  # also where the check itself is stopped: the next one needs the workdir
    process.kill()
    process.join()
  if process.exitcode not in (0, -signal.SIGKILL):
    raise SystemExit(f"training in {workdir} failed with status {process.exitcode}: {said.read_text()}")
  return used if process.exitcode == 0 else None


def _train(workdir: str) -> None:
  from lattice_jax.commands import train  # its flags are those of the child alone

  run_command(train.main, [*_COMMAND, workdir])


def forked(function: Callable[..., Any], *arguments: Any, said: Path) -> multiprocessing.process.BaseProcess:
  """A child of this process that calls the function; JAX has begun nothing here, so there is nothing to lose by it."""
  def call() -> None:
    with said.open("w") as errors:
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
      os.dup2(errors.fileno(), 2)
      function(*arguments)

  process = multiprocessing.get_context("fork").Process(target=call)
  process.start()
  return process


def count_different(workdir: Path, unbroken: Path) -> int:
  """How many arrays of the last states differ, counted in a process of its own: reading them starts JAX."""
  from lattice_jax.inspect.same_run import different_leaves

  answers, answer = multiprocessing.get_context("fork").Pipe(duplex=False)
  process = forked(
    lambda: answer.send(len(different_leaves(workdir, unbroken))), said=workdir.parent / "stderr.txt")
  answer.close()
  try:
    return answers.recv()
  except EOFError as error:
    raise SystemExit(f"{workdir} cannot be compared: {(workdir.parent / 'stderr.txt').read_text()}") from error
  finally:
    process.join()


def processor_seconds(process_id: int) -> float:
  """The processor time of all threads of a process."""
  fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def left_by(workdir: Path) -> str:
  """What a killed process left on disk."""
  from lattice_jax.inspect.same_run import timeless_lines

  names = sorted(path.name for path in (workdir / "checkpoints").glob("*"))
  whole = [name for name in names if name.isdigit()]
  partial = f"; {len(names) - len(whole)} half-written" if names != whole else ""
  return f"{len(timeless_lines(workdir)):3d} metric lines, saved: {', '.join(whole) or 'none'}{partial}"


if __name__ == "__main__":
  run_script(main)
