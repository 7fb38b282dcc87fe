"""Runs train.py as two processes, lets one of them fail in every way that a host can, and says how both end.

python scripts/check_hosts.py --out=hosts [--only=killed]

The processes are real and find each other on this machine. Prints a row for each fault: what was done, how long after
it both had ended, their exit statuses and sentences; writes the table to OUT/README.md. The exit status is 1 if a
process was still there after a minute or ended in more than a sentence. Linux only; takes some five minutes on two
cores.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path
from lattice_jax.commands.run import run_script

_ROOT = Path(__file__).resolve().parents[1]
_LIMIT = 60.0  # seconds after the fault
_START_LIMIT = 300.0
_LOOK_EVERY = 0.05
_PAUSE = 2.0  # a longer gap between two looks means that this machine stood still: the case is timed again
_TRIES = 3
_LONG = ("--config.train.steps=1000000", "--config.train.save_every=5", "--config.train.log_every=2")


@dataclass(frozen=True)
class Fault:
  """What happens to two processes.

  act: done to (process 0, process 1) once both train; None if they fail by themselves, and then the time counts from
    the start.
  present: the processes that are started. arguments: of both; second: of process 1 too. within: what starts process 1.
  apart: each has a working folder of its own, so that relative paths name different files.
  """

  what: str
  act: Callable[[subprocess.Popen, subprocess.Popen], None] | None = None
  present: tuple[int, ...] = (0, 1)
  count: int = 2
  arguments: tuple[str, ...] = ()
  second: tuple[str, ...] = ()
  within: tuple[str, ...] = ()
  apart: bool = False


def _send(number: int, which: int) -> Callable[[subprocess.Popen, subprocess.Popen], None]:
  return lambda *processes: processes[which].send_signal(number)


FAULTS = {
  "killed": Fault("SIGKILL to process 1", _send(signal.SIGKILL, 1), arguments=_LONG),
  "killed_first": Fault("SIGKILL to process 0", _send(signal.SIGKILL, 0), arguments=_LONG),
  "stopped": Fault("SIGSTOP to process 1: its host is frozen", _send(signal.SIGSTOP, 1), arguments=_LONG),
  "terminated": Fault("SIGTERM to process 1", _send(signal.SIGTERM, 1), arguments=_LONG),
  "disk": Fault(
    "no file above 12 KiB on process 1: its disk is full", lambda *processes: None, arguments=_LONG,
    within=("bash", "-c", 'ulimit -f 12; exec "$0" "$@"')),
  "config": Fault("another config on process 1", second=("--config.optimizer.learning_rate=0.5",)),
  "data": Fault("other data on process 1", arguments=("--config.data.source=text:own.txt",), apart=True),
  "folder": Fault("a checkpoint folder that only process 0 sees", arguments=("--workdir=run",), apart=True),
  "mesh": Fault("a mesh that does not multiply", arguments=("--config.mesh.model=3",)),
  "coordinator": Fault("no process 0", present=(1,)),
  "absent": Fault("no process 2 of 3", count=3),
}


@dataclass(frozen=True)
class Outcome:
  """seconds: until the last process that can end had ended; None if one had not. ends: status and sentence of each."""

  seconds: float | None
  ends: dict[int, tuple[int | None, str]]
  was_paused: bool

  @property
  def is_good(self) -> bool:
    return self.seconds is not None and all("\n" not in sentence for _, sentence in self.ends.values())


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--out", type=path, required=True, help="folder for the table")
  parser.add_argument("--only", choices=list(FAULTS), help="one fault")
  arguments = parser.parse_args()
  rows, is_good = [], True
  for name, fault in FAULTS.items():
    if arguments.only in (None, name):
      outcome = repeat(fault)
      is_good &= outcome.is_good
      rows.append(row(fault, outcome))
      print(rows[-1], flush=True)
  arguments.out.mkdir(parents=True, exist_ok=True)
  (arguments.out / "README.md").write_text(page(rows), encoding="utf-8")
  return 0 if is_good else 1


def repeat(fault: Fault) -> Outcome:
  """Inflicts it, again if the machine stood still meanwhile."""
  for _ in range(_TRIES):
    with tempfile.TemporaryDirectory() as folder:
      outcome = inflict(fault, Path(folder))
    if not outcome.was_paused:
      break
  return outcome


def inflict(fault: Fault, folder: Path) -> Outcome:
  """Starts the processes, waits until they train, acts, and waits for their end."""
  address, processes = free_address(), {}
  for number in fault.present:
    place = folder / str(number)
    place.mkdir()
    (place / "own.txt").write_text("All hosts should read the same.\n" * (4000 + number))
    command = [
      sys.executable, _ROOT / "train.py", f"--config={_ROOT}/configs/quickstart.py:smoke", f"--workdir={folder}/run",
      "--distributed", f"--coordinator={address}", f"--num_processes={fault.count}", f"--process={number}",
      *fault.arguments, *(fault.second if number == 1 else ())]
    with (folder / f"out_{number}").open("w") as out, (folder / f"err_{number}").open("w") as errors:
      processes[number] = subprocess.Popen(
        [*(fault.within if number == 1 else ()), *map(str, command)], stdout=out, stderr=errors,
        cwd=place if fault.apart else folder, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  was_paused = False
  try:
    if fault.act is not None:
      was_paused = wait(lambda: "loss" in (folder / "out_0").read_text() or _any_ended(processes), _START_LIMIT)
      fault.act(*processes.values())
    start = time.monotonic()
    limit = _LIMIT if fault.act is not None else _START_LIMIT
    was_paused |= wait(lambda: all(_is_over(process) for process in processes.values()), limit)
    seconds = time.monotonic() - start if all(map(_is_over, processes.values())) else None
  finally:
    for process in processes.values():
      process.kill()
      process.wait()
  ends = {
    number: (process.returncode, (folder / f"err_{number}").read_text().strip().replace(str(folder), ""))
    for number, process in processes.items()}
  return Outcome(seconds, ends, was_paused)


def wait(is_done: Callable[[], bool], limit: float) -> bool:
  """Until it is done or the limit is over; returns whether this machine stood still meanwhile."""
  start = last = time.monotonic()
  was_paused = False
  while not is_done() and time.monotonic() - start < limit:
    time.sleep(_LOOK_EVERY)
    now = time.monotonic()
    was_paused, last = was_paused or now - last > _PAUSE, now
  return was_paused


def _any_ended(processes: dict[int, subprocess.Popen]) -> bool:
  return any(process.poll() is not None for process in processes.values())


def _is_over(process: subprocess.Popen) -> bool:
  """Whether it has ended, or cannot because it is stopped."""
  if process.poll() is not None:
    return True
  return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def row(fault: Fault, outcome: Outcome) -> str:
  time_taken = "still there" if outcome.seconds is None else f"{outcome.seconds:.1f} s"
  said = "<br>".join(
    f"{number}: status {status}{f', «{_shown(sentence)}»' if sentence else ''}"
    for number, (status, sentence) in outcome.ends.items())
  return f"| {fault.what} | {time_taken} | {said} |"


def _shown(sentence: str) -> str:
  return re.sub(r"localhost:\d+", "localhost:PORT", sentence).replace("|", "/").replace("\n", "<br>")


def page(rows: list[str]) -> str:
  return "\n".join([
    "# How two processes end when one fails", "",
    "`python scripts/check_hosts.py --out=docs/results/hosts` printed this: two real processes of `train.py` on one",
    "machine, over the loopback. The time until both had ended counts from the signal; for the full disk from the",
    "first progress line, three updates before the save; in the last six rows from the start of the processes,",
    "imports included.", "", "| what happened | both ended after | process: how |",
    "|---|---|---|", *rows, ""])


if __name__ == "__main__":
  if shutil.which("bash") is None:
    raise SystemExit("check_hosts.py: needs bash.")
  run_script(main)
