"""Fuzzes one reader of files that others made, guided by coverage: libFuzzer through atheris.

python scripts/fuzz.py gguf --minutes=30 [--runs=100000] [--seed=1] [--workdir=runs/fuzz]

The readers, their seeds and what they may answer are in tests/fuzz. An input fails that ends in anything but the
reader's own ValueError, whose message must be a sentence, or takes more than five seconds or a gigabyte; it is saved in
WORKDIR/READER/crashes, and the exit status is 1. Inputs that reach new branches stay in WORKDIR/READER/corpus, from
which the next session goes on. With --keep_going, kinds of failures are collected until the time is over. Prints the
number of runs, branches and failures as one line, which is appended to WORKDIR/fuzz.jsonl. Linux and macOS; needs
`pip install -r requirements-fuzz.txt`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, count, one_of, path, positive_number, seed
from lattice_jax.commands.run import run_script
from lattice_jax.files import append_jsonl
from tests.fuzz.readers import NAMES

_ROOT = Path(__file__).resolve().parents[1]
_READERS = tuple(name for names in NAMES.values() for name in names)
_COVERED = re.compile(r"#(\d+)\s+(?:INITED|NEW|REDUCE|pulse|DONE)\s+cov: (\d+) ft: (\d+) corp: (\d+)")
_ODD_SHARE = 0.5  # of the inputs that the reader's own mutants make, not libFuzzer's


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("reader", type=one_of(*_READERS), help=f"one of {', '.join(_READERS)}")
  parser.add_argument("--minutes", type=positive_number, default=3.0, help="of wall time, without the start")
  parser.add_argument("--runs", type=count, default=0, help="number of inputs; 0 is as many as fit into the time")
  parser.add_argument("--seed", type=seed, default=1, help="of the mutations")
  parser.add_argument("--workdir", type=path, default=Path("runs/fuzz"), help="of the corpora and failures")
  parser.add_argument("--keep_going", action="store_true", help="collect kinds of failures instead of ending with one")
  parser.add_argument("--child", action="store_true", help="internal: the process in which libFuzzer runs")
  arguments = parser.parse_args()
  folder = arguments.workdir.resolve() / arguments.reader
  for name in ("corpus", "crashes"):
    (folder / name).mkdir(parents=True, exist_ok=True)
  if arguments.child:
    return fuzz(arguments, folder)
  return supervise(arguments, folder)


def supervise(arguments: Any, folder: Path) -> int:
  """Runs libFuzzer in a process of its own, which it ends itself, and says what it did."""
  before, start = set((folder / "crashes").iterdir()), time.monotonic()
  with (folder / "log.txt").open("w+") as log:
    status = subprocess.run(
      [sys.executable, *sys.argv, "--child"], stdout=log, stderr=subprocess.STDOUT, check=False,
      env=os.environ | {"JAX_PLATFORMS": "cpu"}).returncode
    log.seek(0)
    said = log.read()
  found = _COVERED.findall(said)
  if not found:
    raise ValueError(f"{arguments.reader} could not be fuzzed; the end of {folder / 'log.txt'}: {said[-300:]!r}.")
  runs, branches, features, kept = map(int, found[-1])
  done = re.findall(r"Done (\d+) runs", said)
  failures = sorted(set((folder / "crashes").iterdir()) - before)
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  record = {
    "reader": arguments.reader, "runs": int(done[-1]) if done else runs, "branches": branches, "features": features,
    "corpus": kept, "minutes": round((time.monotonic() - start) / 60, 2),
    "processor_minutes": round((used.ru_utime + used.ru_stime) / 60, 2), "seed": arguments.seed,
    "failures": [failure.name for failure in failures], "status": status}
  append_jsonl(arguments.workdir / "fuzz.jsonl", [record])
  print(
    f"{arguments.reader}: {record['runs']:,} runs, {branches:,} branches, {kept} inputs kept, {record['minutes']} "
    f"minutes, {record['processor_minutes']} of them on a processor, {len(failures)} failures",
    *failures, sep="\n  ", flush=True)
  return 1 if failures or status else 0


def fuzz(arguments: Any, folder: Path) -> int:
  """The child: instruments the reader's modules and hands over to libFuzzer, which ends the process."""
  atheris = _atheris()
  modules = _modules_of(arguments.reader)
  for name in [name for name in sys.modules if f"{name}.".startswith(tuple(f"{module}." for module in modules))]:
    del sys.modules[name]  # what this script has imported itself is imported again
  with atheris.instrument_imports(include=list(modules)):
    from tests.fuzz.harness import Trial
    from tests.fuzz.readers import find_reader

    reader = find_reader(arguments.reader)
  atheris.enabled_hooks.add("RegEx")
  trial = Trial(reader, Path(tempfile.mkdtemp(prefix="fuzz_")))
  for number, data in enumerate(trial.seeds()):
    (folder / "corpus" / f"seed_{number}").write_bytes(data)
  known: set[str] = set()

  def test_one_input(data: bytes) -> None:
    kind = _failure_kind(trial, data)
    if kind is None or kind in known:
      return
    known.add(kind)
    name = hashlib.sha256(kind.encode()).hexdigest()[:12]
    (folder / "crashes" / name).write_bytes(data)
    (folder / "crashes" / f"{name}.txt").write_text(kind)
    if not arguments.keep_going:
      print(kind, flush=True)
      os._exit(1)

  # libFuzzer looks at the clock, which also runs while the machine does something else; `Trial` counts processor time
  options = [
    f"-max_total_time={round(60 * arguments.minutes)}", f"-seed={arguments.seed or 1}", f"-max_len={reader.limit}",
    "-timeout=1200", "-report_slow_units=1200", "-rss_limit_mb=4096",
    f"-artifact_prefix={folder / 'crashes'}/", "-print_final_stats=1"]
  options += [f"-runs={arguments.runs}"] if arguments.runs else []
  atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], test_one_input, custom_mutator=_mutator(atheris))
  atheris.Fuzz()
  return 0


def _atheris() -> Any:
  try:
    return importlib.import_module("atheris")
  except ImportError as error:
    raise ValueError("fuzzing needs atheris; run pip install -r requirements-fuzz.txt.") from error


def _modules_of(name: str) -> tuple[str, ...]:
  """The modules that a reader names, read in a process of its own: they are instrumented as they are imported."""
  code = "import sys; from tests.fuzz.readers import find_reader; print(*find_reader(sys.argv[1]).modules)"
  done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True, cwd=_ROOT)
  return tuple(done.stdout.split())


def _mutator(atheris: Any) -> Any:
  """libFuzzer's mutations of the bytes, and in part those of tests/fuzz, which know JSON."""
  import random

  from tests.fuzz.mutants import mutant

  def mutate(data: bytes, max_size: int, number: int) -> bytes:
    draw = random.Random(number)
    if data and draw.random() < _ODD_SHARE:
      changed = bytes(data[:1]) + mutant(bytes(data[1:]), draw)
      return changed[:max_size]
    return atheris.Mutate(data, max_size)

  return mutate


def _failure_kind(trial: Any, data: bytes) -> str | None:
  """What is wrong with the answer to this input, alike for inputs that fail alike."""
  try:
    with contextlib.redirect_stdout(None):
      fault = trial.fault(data)
    return None if fault is None else re.sub(r"[\d.,]+", "N", fault[:60])
  except Exception as error:
    places = [
      f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
    return f"{type(error).__name__} at {' < '.join(reversed(places))}"


if __name__ == "__main__":
  run_script(main)
