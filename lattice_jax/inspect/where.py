"""Where the time of a compiled program goes: a profile of some runs, joined with what its HLO says of each instruction.

An instruction's time is its own: that of instructions inside a loop is not also the loop's. On a CPU several threads
run instructions at the same time, so that the sum of all may be more than what passes.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData, ProfileOptions

from lattice_jax.inspect.hlo import rearranged
from lattice_jax.inspect.instructions import Described, describe_instructions, module_name
from lattice_jax.markdown import markdown_table

_WIDEST_PATH = 5  # modules; deeper ones count for theirs


@dataclass(frozen=True)
class Spent:
  """seconds, runs: of one instruction in one call of what was timed."""

  what: Described
  seconds: float
  runs: float


@dataclass(frozen=True)
class Where:
  """wall: seconds that one call took with the profiler on. spent: the longest first. rearranged: see `inspect.hlo`."""

  title: str
  wall: float
  spent: tuple[Spent, ...]
  rearranged: tuple[tuple[str, int], ...]

  @property
  def busy(self) -> float:
    return sum(one.seconds for one in self.spent)

  def totals(self, name_of: Callable[[Described], str]) -> list[tuple[str, float, float, float]]:
    """(name, seconds, runs, bytes) of each group of instructions, the longest first."""
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for one in self.spent:
      for place, amount in enumerate((one.seconds, one.runs, one.runs * one.what.bytes)):
        groups[name_of(one.what)][place] += amount
    return sorted(((name, *sums) for name, sums in groups.items()), key=lambda group: -group[1])

  def record(self) -> dict[str, Any]:
    """The content of a JSON file."""
    return {
      "title": self.title, "wall_seconds": self.wall, "busy_seconds": self.busy,
      "by_kind": _lines(self.totals(by_kind)), "by_path": _lines(self.totals(by_path)),
      "instructions": [
        dataclasses.asdict(one.what) | {"seconds": one.seconds, "runs": one.runs} for one in self.spent],
      "rearranged": [{"shape": shape, "elements": elements} for shape, elements in self.rearranged]}


def by_kind(what: Described) -> str:
  return what.kind


def by_path(what: Described) -> str:
  path = "/".join(what.path.split("/")[:_WIDEST_PATH])
  return path if what.pass_ == "forward" else f"{path} ({what.pass_})"


def measure(
  title: str, texts: Sequence[str], call: Callable[[], Any], *, calls: int, folder: Path, units: int = 1) -> Where:
  """Runs `call` once, then `calls` times under the profiler, which writes its trace below `folder`.

  texts: HLO of the programs that it runs. units: what one call is divided by, such as tokens drawn.

  Raises:
    ValueError: the profile names no instruction of these programs.
  """
  programs = {module_name(text): describe_instructions(text) for text in texts}
  jax.block_until_ready(call())
  options = ProfileOptions()
  options.python_tracer_level = 0  # Python's own calls would fill the trace
  before = set(_profiles(folder))
  jax.profiler.start_trace(folder, profiler_options=options)
  try:
    start = time.perf_counter()
    for _ in range(calls):
      jax.block_until_ready(call())
    wall = time.perf_counter() - start
  finally:
    jax.profiler.stop_trace()
  [file] = set(_profiles(folder)) - before
  sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
  for module, name, seconds in own_seconds(ProfileData.from_file(str(file))):
    if module in programs and name in programs[module]:
      sums[module, name][0] += seconds
      sums[module, name][1] += 1
  if not sums:
    raise ValueError(
      f"the profile in {file} names no instruction of {', '.join(programs)}; this backend does not report them.")
  spent = [Spent(programs[module][name], seconds / calls / units, runs / calls / units)
           for (module, name), (seconds, runs) in sums.items()]
  return Where(
    title, wall / calls / units, tuple(sorted(spent, key=lambda one: -one.seconds)),
    tuple(pair for text in texts for pair in rearranged(text)))


def own_seconds(profile: Any) -> Iterable[tuple[str, str, float]]:
  """(module, instruction, seconds) of each run of an instruction, without that of instructions inside it."""
  for plane in profile.planes:
    for line in plane.lines:
      open_runs: list[list[Any]] = []  # [end, own duration, module, name], each inside the one before
      for start, end, module, name in sorted(_runs(line), key=lambda run: (run[0], -run[1])):
        while open_runs and open_runs[-1][0] <= start:
          yield _closed(open_runs.pop())
        if open_runs:
          open_runs[-1][1] -= end - start
        open_runs.append([end, end - start, module, name])
      yield from (_closed(run) for run in open_runs)


def format_tables(where: Where, top: int = 12) -> str:
  """By kind and by module, the longest instructions, and what is copied or transposed."""
  whole = f"{where.title}: {_ms(where.wall)} ms, in which instructions run for {_ms(where.busy)} ms"
  parts = [whole, *(_group_table(where, name, of) for name, of in (("kind", by_kind), ("module", by_path)))]
  rows = [["instruction", "module", "result", "ms", "share", "runs", "GB/s"]]
  for one in where.spent[:top]:
    rows.append([
      f"{one.what.name} ({one.what.kind})", by_path(one.what), _short(one.what.shape), _ms(one.seconds),
      f"{one.seconds / where.busy:.1%}", f"{one.runs:,.4g}", _rate(one.runs * one.what.bytes, one.seconds)])
  parts.append(markdown_table(rows, "lllrrrr"))
  found = [f"{shape} ({elements:,} elements)" for shape, elements in where.rearranged]
  parts.append(f"copied or transposed: {', '.join(found) or 'nothing of 0.5 M elements or more'}")
  return "\n\n".join(parts)


def _group_table(where: Where, name: str, name_of: Callable[[Described], str]) -> str:
  rows = [[name, "ms", "share", "runs", "GB/s"]]
  for group, seconds, runs, size in where.totals(name_of):
    if seconds >= 0.001 * where.busy:
      rows.append([group, _ms(seconds), f"{seconds / where.busy:.1%}", f"{runs:,.4g}", _rate(size, seconds)])
  return markdown_table(rows)


def _lines(totals: Sequence[tuple[str, float, float, float]]) -> list[dict[str, Any]]:
  return [dict(zip(("name", "seconds", "runs", "bytes"), group, strict=True)) for group in totals]


def _runs(line: Any) -> Iterable[tuple[float, float, str, str]]:
  for event in line.events:
    facts = dict(event.stats)
    if "hlo_op" in facts and "hlo_module" in facts:
      yield event.start_ns, event.start_ns + event.duration_ns, facts["hlo_module"], facts["hlo_op"]


def _closed(run: Sequence[Any]) -> tuple[str, str, float]:
  _, duration, module, name = run
  return module, name, duration / 1e9


def _profiles(folder: Path) -> list[Path]:
  return sorted(folder.glob("plugins/profile/*/*.xplane.pb"))


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:,.2f}"


def _rate(size: float, seconds: float) -> str:
  return f"{size / seconds / 1e9:.1f}" if seconds and size else ""


def _short(shape: str) -> str:
  return shape if len(shape) <= 40 else f"{shape[:37]}…"
