"""Instructions of a compiled program: what each is, which part of the model it belongs to, what it reads and writes.

Read from the text of optimized HLO (`Compiled.as_text()`), in which a name stands for one instruction.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_LAID_OUT = re.compile(_ARRAY.pattern + r"(?:\{[^}]*\})?")
_NAME = re.compile(r"%([\w.-]+)")
_CUTS = ("dynamic-slice", "slice", "gather")
_WRITES = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written into the first
# Instructions that only hold others, or names for what is there already.
_FREE = ("while", "call", "conditional", "tuple", "get-tuple-element", "bitcast", "parameter", "constant", "after-all")
_FREE_CALLS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')  # of TPUs
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What a fusion hands on as it came. A collective inside one goes on in steps, and its arrays are there once.
_PASSES = ("tuple", *COLLECTIVES)
_MOVING = frozenset((
  "parameter", "constant", "bitcast", "copy", "transpose", "reshape", "broadcast", "concatenate", "pad", "iota",
  "tuple", "get-tuple-element", *_WRITES, *_CUTS))
PRODUCTS = ("dot", "convolution")
# Kinds that compute nothing.
MOVES = ("copy", "transpose", "concatenate", "pad", "reverse", "fusion that moves", *_CUTS)
# What JAX puts into paths for its own transformations, and no module of ours is called.
_OF_JAX = re.compile(
  r"(p?jit\(.*|while|body|cond|closed_call|core_call|branch_\d+_fun|custom_[jv][vj]p_call|remat2?|checkpoint|"
  r"rematted_computation|shard_map|.*->.*)$")


@dataclass(frozen=True)
class Instruction:
  """operands: names of what it takes. calls: the computation that a fusion stands for. metadata: JAX's op_name."""

  name: str
  opcode: str
  shape: str
  operands: tuple[str, ...]
  calls: str
  metadata: str
  rest: str
  is_root: bool


@dataclass(frozen=True)
class Described:
  """kind: opcode; of fusions also whether they hold a product or only move data. path: modules, from the model down.

  pass_: forward, backward, or again where the backward pass repeats the forward. shape: of the result. bytes: read and
  written in one run, as far as they are not another instruction's.
  """

  name: str
  kind: str
  path: str
  pass_: str
  shape: str
  bytes: int


def module_name(text: str) -> str:
  """The name by which a profile knows the program."""
  return re.match(r"HloModule ([^,\s]+)", text)[1]


def describe_instructions(text: str) -> dict[str, Described]:
  """Every instruction of a compiled program, those inside fusions included, by name."""
  computations = read_computations(text)
  by_name = {line.name: line for lines in computations.values() for line in lines}
  users = {name: line for line in by_name.values() for name in line.operands}
  inside = {line.name: computations[line.calls] if line.opcode == "fusion" else () for line in by_name.values()}
  described = {}
  for line in by_name.values():
    inner, user = inside[line.name], line
    op_name = _metadata_of(line, inner)
    while not op_name and user.name in users:  # XLA's own instruction belongs to what uses its result
      user = users[user.name]
      op_name = _metadata_of(user, inside[user.name])
    path, pass_ = module_path(op_name)
    described[line.name] = Described(
      line.name, _kind(line, inner), path, pass_, re.sub(r"\{[^}]*\}", "", line.shape),
      instruction_bytes(line, computations, by_name))
  return described


def module_path(op_name: str) -> tuple[str, str]:
  """(modules without what JAX adds, pass) of an instruction's op_name, whose last part is a primitive."""
  pass_ = "again" if "rematted_computation" in op_name else "backward" if "transpose(" in op_name else "forward"
  names = []
  for part in op_name.partition(";")[0].split("/")[:-1]:
    while inside := re.fullmatch(r"(?!p?jit)\w+\((.*)\)", part):  # transpose(jvp(Decoder))
      part = inside[1]
    if part and not _OF_JAX.match(part):
      names.append(part)
  return "/".join(names) or "outside modules", pass_


def array_bytes(shape: str) -> int:
  """Bytes of an array, or of all arrays of a tuple."""
  return sum(_bits(dtype) * math.prod(map(int, filter(None, sizes.split(",")))) for dtype, sizes in
             _ARRAY.findall(shape)) // 8


def instruction_bytes(
  line: Instruction, computations: Mapping[str, Sequence[Instruction]], by_name: Mapping[str, Instruction],
  bytes_of: Callable[[str], int] = array_bytes,
) -> int:
  """Bytes that an instruction reads and writes, as far as they are not another instruction's.

  bytes_of: of a shape; 0 for arrays that are not to be counted.
  """
  if line.opcode in _FREE or (line.opcode == "custom-call" and any(call in line.rest for call in _FREE_CALLS)):
    return 0
  size = bytes_of(line.shape)
  if line.opcode in _CUTS:
    return 2 * size
  if line.opcode in _WRITES:
    return 2 * _written_bytes(line, by_name) if size else 0
  operands = [bytes_of(by_name[name].shape) for name in line.operands if name in by_name]
  if line.opcode != "fusion":
    return size + sum(operands)
  return _result_bytes(line, line.shape, computations, by_name, bytes_of) + sum(
    _read_bytes(index, whole, computations[line.calls], computations) for index, whole in enumerate(operands))


def _bits(dtype: str) -> int:
  return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


def read_computations(text: str) -> dict[str, list[Instruction]]:
  """The instructions of every computation, in order."""
  found: dict[str, list[Instruction]] = defaultdict(list)
  current = ""
  for line in text.splitlines():
    header = re.match(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
    if header:
      current = header[1]
    elif match := _LINE.match(line):
      is_root, name, shape, opcode, rest = match.groups()
      calls, metadata = re.search(r"calls=%?([\w.-]+)", rest), re.search(r'op_name="([^"]*)"', rest)
      found[current].append(Instruction(
        name, opcode, shape, tuple(_NAME.findall(rest.split("), ")[0])), calls[1] if calls else "",
        metadata[1] if metadata else "", rest, bool(is_root)))
  return found


def _metadata_of(line: Instruction, inner: Sequence[Instruction]) -> str:
  """Of a fusion without its own, that of a product in it, else of the last instruction that has one."""
  if line.metadata:
    return line.metadata
  named = [line for line in inner if line.metadata]
  products = [line for line in named if line.opcode in PRODUCTS]
  return (products or named)[-1].metadata if named else ""


def _kind(line: Instruction, inner: Sequence[Instruction]) -> str:
  if not inner:
    return line.opcode
  large = {part.opcode for part in inner if array_bytes(part.shape) > 8}  # index arithmetic is on single numbers
  if large & set(PRODUCTS):
    return "fusion with product"
  return "fusion that moves" if large <= _MOVING else "fusion"


def _read_bytes(
  index: int, whole: int, inner: Sequence[Instruction], computations: Mapping[str, Sequence[Instruction]]) -> int:
  """Of one operand of a fusion: all of it, or what is cut out of it where nothing else reads it."""
  name = next((line.name for line in inner if line.opcode == "parameter" and line.rest.startswith(f"{index})")), None)
  names, read = {name}, 0
  for line in inner:  # in order: names of the same array come before their users
    if line.opcode == "bitcast" and line.operands[0] in names:
      names.add(line.name)
      continue
    for place in [place for place, operand in enumerate(line.operands) if operand in names]:
      if line.opcode == "fusion":
        read += _read_bytes(place, whole, computations[line.calls], computations)
      elif line.opcode in _CUTS and place == 0:
        read += array_bytes(line.shape)
      elif not (line.opcode in _WRITES and place == 0) and line.opcode not in _PASSES:
        return whole
  return min(read, whole)


def _result_bytes(
  line: Instruction, shape: str, computations: Mapping[str, Sequence[Instruction]], by_name: Mapping[str, Instruction],
  bytes_of: Callable[[str], int],
) -> int:
  """Written by an instruction whose result has this shape: of an array that is there already, the part that is new."""
  while line.opcode == "fusion" or (line.opcode == "bitcast" and line.operands[0] in by_name):
    line = (next(part for part in computations[line.calls] if part.is_root) if line.opcode == "fusion" else
            by_name[line.operands[0]])
  if line.opcode == "tuple":
    arrays, written = (part[0] for part in _LAID_OUT.finditer(shape)), 0
    for part in (by_name[name] for name in line.operands):  # which may be several arrays, as a reduction's result is
      its_own = itertools.islice(arrays, len(_ARRAY.findall(part.shape)))
      written += _result_bytes(part, ", ".join(its_own), computations, by_name, bytes_of)
    return written
  if line.opcode == "parameter" or line.opcode in COLLECTIVES:
    return 0
  size = bytes_of(shape)
  return min(size, _written_bytes(line, by_name)) if line.opcode in _WRITES else size


def _written_bytes(line: Instruction, by_name: Mapping[str, Instruction]) -> int:
  return array_bytes(by_name[line.operands[_WRITES[line.opcode]]].shape)
