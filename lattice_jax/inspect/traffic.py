"""What one run of a compiled program moves: between chips, and between a chip and its memory.

Read from the text of optimized HLO. An instruction counts as often as the loops around it turn, where the program says
so; the body of any other loop counts once.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lattice_jax.inspect.instructions import COLLECTIVES, Instruction, array_bytes, instruction_bytes, read_computations

_CALLED = re.compile(r"\b(?:calls|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_APPLIED = re.compile(r"\bto_apply=%?([\w.-]+)")  # of a call; elsewhere what is done to pairs of numbers
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_IN_FAST_MEMORY = re.compile(r"\b(?:pred|[a-z]+\d+\w*)\[[\d,]*\]\{[^}]*S\([1-9]\d*\)[^}]*\}")
_CONTEXT = re.compile(r"\b[us]32\[\](?:\{[^}]*\})?")  # by which an asynchronous instruction is waited for


@dataclass(frozen=True)
class Collective:
  """An instruction at which chips exchange arrays.

  axes: of the mesh, over which they do. group: chips that take part together. received_bytes: by a chip in one run, by
  a ring's algorithm. runs: how often it runs.
  """

  name: str
  axes: tuple[str, ...]
  group: int
  received_bytes: float
  runs: int


@dataclass(frozen=True)
class Traffic:
  """memory_bytes: that a chip reads and writes in its memory. uncounted_loops: those that do not say their turns."""

  collectives: tuple[Collective, ...]
  memory_bytes: int
  uncounted_loops: int

  @property
  def received_bytes(self) -> float:
    """Of all collectives, by a chip."""
    return sum(collective.received_bytes * collective.runs for collective in self.collectives)


def read_traffic(text: str, mesh: Mapping[str, int]) -> Traffic:
  """The traffic of a program for a mesh, whose axes have these names and sizes.

  Raises:
    ValueError: the chips of a collective are written in a way that is not known here.
  """
  computations = read_computations(text)
  by_name = {line.name: line for lines in computations.values() for line in lines}
  runs, uncounted = _runs(computations, by_name, _entry(text))
  inner = {line.calls for line in by_name.values() if line.opcode == "fusion"}
  collectives, memory = [], 0
  in_steps: dict[str, tuple[int, Instruction]] = {}
  for name, count in runs.items():
    for line in computations[name]:
      kind = line.opcode.removesuffix("-start")
      channel = _CHANNEL.search(line.rest)
      if kind in COLLECTIVES and name in inner and channel:
        # on TPUs a collective may go on in steps inside other fusions, all of which name it; it begins most rarely
        known = in_steps.setdefault(channel[1], (count, line))
        in_steps[channel[1]] = min(known, (count, line), key=lambda step: step[0])
      elif kind in COLLECTIVES:
        collectives.append(_collective(kind, line, by_name, mesh, count))
      if name not in inner:
        memory += count * _memory_bytes(line, computations, by_name)
  for count, line in in_steps.values():
    collectives.append(_collective(line.opcode, line, by_name, mesh, count))
    memory += count * instruction_bytes(line, computations, by_name, _bytes_in_memory)
  return Traffic(tuple(collectives), memory, uncounted)


def _entry(text: str) -> str:
  return re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)[1]


def _runs(
  computations: Mapping[str, list[Instruction]], by_name: Mapping[str, Instruction], entry: str
) -> tuple[dict[str, int], int]:
  """(how often each computation runs that does, loops that do not say how often they turn)."""
  runs: dict[str, int] = defaultdict(int)
  uncounted = 0

  def visit(name: str, count: int) -> None:
    nonlocal uncounted
    runs[name] += count
    for line in computations[name]:
      times = count
      if line.opcode == "while":
        turns = _turns(line, computations, by_name)
        uncounted += turns is None
        times *= 1 if turns is None else turns
      branches = _BRANCHES.search(line.rest)
      called = _CALLED.findall(line.rest) + (re.findall(r"[\w.-]+", branches[1]) if branches else [])
      for inner in called + (_APPLIED.findall(line.rest) if line.opcode == "call" else []):
        if inner in computations:
          visit(inner, times)

  visit(entry, 1)
  return dict(runs), uncounted


def _turns(
  loop: Instruction, computations: Mapping[str, list[Instruction]], by_name: Mapping[str, Instruction]
) -> int | None:
  """Of a loop that says so, or whose counter begins at a constant and ends below one; loops of JAX count by one."""
  if told := _TURNS.search(loop.rest):
    return int(told[1])
  condition = re.search(r"\bcondition=%?([\w.-]+)", loop.rest)[1]
  end = next(line for line in computations[condition] if line.is_root)
  first = by_name[loop.operands[0]]
  if end.opcode != "compare" or "direction=LT" not in end.rest or first.opcode != "tuple":
    return None
  counter, limit = (by_name[name] for name in end.operands)
  if counter.opcode != "get-tuple-element":
    return None
  begin = by_name[first.operands[int(re.search(r"\bindex=(\d+)", counter.rest)[1])]]
  numbers = _constant(begin, by_name), _constant(limit, by_name)
  return None if None in numbers else max(0, numbers[1] - numbers[0])


def _constant(line: Instruction, by_name: Mapping[str, Instruction]) -> int | None:
  while line.opcode == "copy":
    line = by_name[line.operands[0]]
  value = re.match(r"(-?\d+)\)", line.rest)
  return int(value[1]) if line.opcode == "constant" and value else None


def _memory_bytes(
  line: Instruction, computations: Mapping[str, list[Instruction]], by_name: Mapping[str, Instruction]
) -> int:
  """Bytes that an instruction which is not inside a fusion moves to and from memory; 0 where another one has them."""
  if line.opcode.endswith("-done"):
    return 0
  if line.opcode.endswith("-start"):  # its result is a tuple of what it reads and what it writes
    read = sum(array_bytes(by_name[name].shape) for name in line.operands if name in by_name)
    shape = _CONTEXT.sub("", line.shape)
    # of a slice only what is cut out is read
    return _bytes_in_memory(shape) + (array_bytes(shape) - 2 * read if line.opcode == "slice-start" else 0)
  return instruction_bytes(line, computations, by_name, _bytes_in_memory)


def _bytes_in_memory(shape: str) -> int:
  """Bytes of arrays that lie in a chip's memory, not in the fast memory of its core (another space in its layout)."""
  return array_bytes(_IN_FAST_MEMORY.sub("", shape))


def _collective(
  kind: str, line: Instruction, by_name: Mapping[str, Instruction], mesh: Mapping[str, int], runs: int
) -> Collective:
  given = sum(array_bytes(by_name[name].shape) for name in line.operands if name in by_name)
  groups = _permuted(line) if kind == "collective-permute" else _groups(line, math.prod(mesh.values()))
  size = groups.shape[1]
  received = {
    "all-gather": given * (size - 1), "reduce-scatter": given * (size - 1) / size,
    "all-reduce": 2 * given * (size - 1) / size, "all-to-all": given * (size - 1) / size,
    "collective-permute": given}[kind]
  places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # axis, group, member
  differs = (places != places[:, :, :1]).any((1, 2))
  axes = tuple(name for name, is_crossed in zip(mesh, differs, strict=True) if is_crossed)
  return Collective(kind, axes, size, received, runs)


def _permuted(line: Instruction) -> np.ndarray:
  """(source, target) pairs [N, 2]."""
  text = re.search(r"source_target_pairs=\{(.*?)\}\}", line.rest)[1]
  return np.array(re.findall(r"\d+", text), int).reshape(-1, 2)


def _groups(line: Instruction, chips: int) -> np.ndarray:
  """The numbers of the chips of each group [N, size]."""
  if match := re.search(r"replica_groups=\{(\{.*?\})\}", line.rest):
    return np.array([re.findall(r"\d+", group) for group in re.findall(r"\{(.*?)\}", match[1])], int)
  if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line.rest):
    return _iota(match[2], match[3]).reshape(_numbers(match[1]))
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
                        r"\{([^}]*)\}", line.rest):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    named = [(name, int(before or 1), int(size or sizes[name]))
             for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[4])]
    return _along(_iota(match[2] or str(chips), match[3]), sizes, named)
  if "replica_groups={}" in line.rest:
    return np.arange(chips)[None]
  raise ValueError(f"the chips of {line.opcode} {line.name} are written in an unknown way: {line.rest[:300]}")


def _along(ids: np.ndarray, sizes: Mapping[str, int], named: list[tuple[str, int, int]]) -> np.ndarray:
  """Groups of the chips that differ along parts of a mesh's axes: (axis, what of its size is before the part, size)."""
  shape, inside = [], []
  for axis, whole in sizes.items():
    parts = [(before, before * size) for name, before, size in named if name == axis]
    cuts = sorted({1, whole, *(cut for part in parts for cut in part)})
    for low, high in itertools.pairwise(cuts):
      inside += [len(shape)] if any(begin <= low and high <= end for begin, end in parts) else []
      shape.append(high // low)
  ids = ids.reshape(shape)
  return np.moveaxis(ids, inside, range(-len(inside), 0)).reshape(-1, math.prod(shape[axis] for axis in inside))


def _iota(sizes: str, turned: str | None) -> np.ndarray:
  numbers = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
  return numbers.transpose(_numbers(turned)) if turned else numbers


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(part) for part in text.split(","))
