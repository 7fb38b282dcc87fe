"""Breaks the code one line at a time and checks that the tests which should notice it do.

python scripts/mutate.py [--only=ops/vq] [--jobs=1] [--results=runs/mutations.jsonl]
python scripts/mutate.py --list

scripts/mutations/*.yaml holds the mutations, by file. Each changes the meaning of one place (`new` replaces `old`,
which occurs once in the file) and names the narrowest tests that must then fail, as pytest does. The tree is copied to
a temporary folder, where the tests must pass at first; then each mutation is made there alone. Prints a line for each
mutation, and a summary:

  killed      a test failed, or did not end
  survived    all passed: write the test that is missing
  equivalent  all passed, and the entry says under `equivalent` why nothing can notice
  broken      nothing was tested: `old` does not occur once, or the mutated program cannot even be imported

The exit status is 1 if more than 2 % survive without a reason or anything is broken. Results are stored under --results
and reused while the mutation, its file and its tests are unchanged, so a stopped command can be resumed. Meant to be
run by hand and weekly; about ten seconds per mutation on two cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import queue
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, of, path
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Number
from lattice_jax.files import append_jsonl, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "scripts" / "mutations"
MOST_UNEXPLAINED = 0.02
_TIMEOUT = 300  # seconds of one mutation's tests, which take less than thirty
_PYTEST = (
  sys.executable, "-m", "pytest", "-qq", "-x", "-p", "no:cacheprovider", "-p", "scripts.mutate_fork", "-n", "0",
  "--no-header", "--tb=no", "--capture=no", "tests")
_PASSED, _FAILED = 0, 1  # exit statuses of pytest
# Python uses cached bytecode if size and whole second of the source are unchanged.
_seconds = itertools.count(1_000_000_000)


@dataclass(frozen=True)
class Mutation:
  """file: from the root. tests: as pytest names them. equivalent: why no test can notice; "" if one must."""

  file: str
  old: str
  new: str
  tests: tuple[str, ...]
  equivalent: str = ""

  @property
  def label(self) -> str:
    """The mutation in one line."""
    old, new = (" ".join(text.split()) for text in (self.old, self.new))
    return f"{self.file}: {old} → {new or 'nothing'}"

  def problem(self, root: Path) -> str | None:
    """Why the mutation cannot be made in the tree, or None."""
    path = root / self.file
    if not path.is_file():
      return "there is no such file"
    times = path.read_text(encoding="utf-8").count(self.old)
    return None if times == 1 else f"the old text stands {times} times in the file, not once"

  def key(self, root: Path) -> str:
    """A key that changes with the mutation, its file and its tests."""
    digest = hashlib.sha256(repr(self).encode())
    for name in sorted({self.file, *(test.split("::")[0] for test in self.tests)}):
      path = root / name
      digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def load() -> list[Mutation]:
  """All mutations of `scripts/mutations`. Raises ValueError for an entry with other fields."""
  mutations = []
  for listing in sorted(LISTS.glob("*.yaml")):
    for file, entries in yaml.safe_load(listing.read_text(encoding="utf-8")).items():
      for entry in entries:
        if not {"old", "new", "tests"} <= set(entry) <= {"old", "new", "tests", "equivalent"}:
          raise ValueError(f"{listing.name}: an entry of {file} has the fields {', '.join(entry)}; it takes old, new "
                           "and tests, and may have equivalent.")
        mutations.append(Mutation(file, **entry | {"tests": tuple(shlex.split(entry["tests"]))}))
  return mutations


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("--only", default="", help="only mutations whose line of --list contains this")
  parser.add_argument("--jobs", type=of(Number(int, 1, 64)), default=1, metavar="N", help="processes side by side")
  parser.add_argument("--list", action="store_true", help="print the mutations and stop")
  parser.add_argument("--results", type=path, default=Path("runs/mutations.jsonl"), help="file of the results")
  arguments = parser.parse_args()
  mutations = [mutation for mutation in load() if arguments.only in mutation.label]
  if not mutations:
    raise ValueError(f"--only={arguments.only} is in no line of --list.")
  if arguments.list:
    print("\n".join(mutation.label for mutation in mutations))
    return 0
  return summarize(mutations, run_all(mutations, arguments.results, arguments.jobs))


def run_all(mutations: list[Mutation], results_file: Path, jobs: int) -> list[str]:
  """The result of each mutation, in order; each is appended to the results file at once."""
  known = {record["key"]: record["result"] for record in read_jsonl(results_file)}
  keys = [mutation.key(ROOT) for mutation in mutations]
  waiting = [i for i, key in enumerate(keys) if key not in known]
  with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
    testers = [Tester(copy_tree(Path(folder) / str(job))) for job in range(min(jobs, len(waiting)))]
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
      if waiting:
        check_unbroken([mutations[i] for i in waiting], testers[0])
      free: queue.Queue[Tester] = queue.Queue()
      for tester in testers:
        free.put(tester)

      def one(i: int) -> tuple[int, str]:
        tester = free.get()
        try:
          return i, run_one(mutations[i], tester)
        finally:
          free.put(tester)

      futures = [pool.submit(one, i) for i in waiting]
      for done, future in enumerate(concurrent.futures.as_completed(futures), start=1):
        i, known[keys[i]] = future.result()
        append_jsonl(results_file, [{"key": keys[i], "result": known[keys[i]], "mutation": mutations[i].label}])
        print(f"{done:>4}/{len(waiting)}  {known[keys[i]]:<10}  {mutations[i].label}", flush=True)
    finally:  # after Ctrl-C too
      for tester in testers:
        tester.stop()
      pool.shutdown(cancel_futures=True)
  return [known[key] for key in keys]


def copy_tree(target: Path) -> Path:
  """Copies the files that git tracks or would add."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
  for name in filter(None, listed.stdout.decode().split("\0")):
    if (ROOT / name).is_file():
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, target / name)
  return target


def check_unbroken(mutations: list[Mutation], tester: Tester) -> None:
  """Raises ValueError if a test fails without a mutation, so that it could show nothing."""
  tests = tuple(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
  if tester.run(tests, timeout=len(tests) * _TIMEOUT) != _PASSED:
    raise ValueError(f"without any mutation this fails already: pytest -x {shlex.join(tests)}.")


def run_one(mutation: Mutation, tester: Tester) -> str:
  """Makes the mutation in the tester's tree, runs its tests, and reverts it."""
  if mutation.problem(tester.tree):
    return "broken"
  path = tester.tree / mutation.file
  unbroken = path.read_text(encoding="utf-8")
  write(path, unbroken.replace(mutation.old, mutation.new))
  try:
    status = tester.run(mutation.tests)
  finally:
    write(path, unbroken)
  if status == _PASSED:
    return "equivalent" if mutation.equivalent else "survived"
  return "killed" if status in (_FAILED, None) else "broken"


def write(path: Path, text: str) -> None:
  path.write_text(text, encoding="utf-8")
  os.utime(path, (second := next(_seconds), second))


class Tester:
  """Runs tests of a tree with its current files, each time in a new process."""

  def __init__(self, tree: Path):
    self.tree = tree
    self._parent = self._start()

  def _start(self) -> subprocess.Popen:
    return subprocess.Popen(
      _PYTEST, cwd=self.tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
      start_new_session=True)

  def run(self, tests: tuple[str, ...], timeout: float = _TIMEOUT) -> int | None:
    """pytest's exit status, or None if it did not end."""
    self._parent.stdin.write(json.dumps(tests) + "\n")
    self._parent.stdin.flush()
    if not select.select([self._parent.stdout], [], [], timeout)[0]:
      self.stop()
      self._parent = self._start()
      return None
    answer = self._parent.stdout.readline()
    if not answer:
      raise ValueError(f"pytest does not start in {self.tree}; run the suite to see why.")
    return int(answer)

  def stop(self) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._parent.pid, signal.SIGKILL)
    self._parent.wait()


def summarize(mutations: list[Mutation], results: list[str]) -> int:
  """Prints the mutations that need attention and the summary. Returns the exit status."""
  for mutation, result in zip(mutations, results, strict=True):
    if result in ("survived", "broken"):
      reason = mutation.problem(ROOT) if result == "broken" else None
      print(f"{result}: {mutation.label}{f' ({reason})' if reason else ''}\n  pytest {shlex.join(mutation.tests)}")
    elif mutation.equivalent:
      print(f"{result}: {mutation.label}\n  {mutation.equivalent}")
  count = Counter(results)
  print(f"{len(results)} mutations: " + ", ".join(
    f"{count[result]} {result}" for result in ("killed", "survived", "equivalent", "broken")))
  return int(bool(count["broken"]) or count["survived"] > MOST_UNEXPLAINED * len(results))


if __name__ == "__main__":
  run_script(main)
