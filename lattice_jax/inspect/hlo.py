"""Facts of a compiled program, read from its HLO."""

from __future__ import annotations

import math
import re
from collections import Counter

from lattice_jax.inspect.instructions import (
  COLLECTIVES,
  MOVES,
  PRODUCTS,
  array_bytes,
  describe_instructions,
  read_computations,
)

_KERNELS = ("tpu_custom_call", "mosaic_gpu_v2", "mosaic_gpu")


def count_collectives(text: str) -> dict[str, int]:
  """Number of instructions by name; one in the body of a loop counts once."""
  names = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
  return dict(sorted(Counter(names).items()))


def collective_bytes(text: str) -> dict[str, int]:
  """Bytes of the results of these instructions, added up by name; one in the body of a loop counts once."""
  found: Counter[str] = Counter()
  for lines in read_computations(text).values():
    for line in lines:
      name = line.opcode.removesuffix("-start")
      if name in COLLECTIVES:
        found[name] += array_bytes(line.shape)
  return dict(sorted(found.items()))


def count_kernels(text: str) -> int:
  """Number of calls of Pallas kernels."""
  return sum(text.count(f'custom_call_target="{name}"') for name in _KERNELS)


def kernel_names(text: str) -> set[str]:
  """Names of the instructions that call a kernel in a program for TPUs."""
  return set(re.findall(r'%?([\w.-]+) = [^\n]*custom_call_target="tpu_custom_call"', text))


def vmem_of_kernels(text: str) -> list[tuple[int, int]]:
  """(bytes used, limit) of every Pallas kernel of a program for TPUs."""
  found = []
  for line in text.splitlines():
    if 'custom_call_target="tpu_custom_call"' in line:
      used, limit = (_scoped_bytes(line, name) for name in ("used_scoped_memory_configs", "scoped_memory_configs"))
      found.append((used, limit))
  return found


def square_buffers(text: str, length: int, shards: int = 1) -> list[str]:
  """Arrays with two axes of at least `length`, which hold all pairs of tokens at once.

  shards: that share the tokens: one of the axes may be as many times shorter, a shard's own tokens.
  """
  shapes = {match[0]: [int(size) for size in match[1].split(",")] for match in re.findall(r"(\w+\[([\d,]+)\])", text)}
  return sorted(
    shape for shape, sizes in shapes.items()
    if max(sizes) >= length and sum(size >= length // shards for size in sizes) > 1)


def rearranged(text: str, at_least: int = 500_000) -> list[tuple[str, int]]:
  """(shape, elements) of each copy and transpose of so many elements, the largest first; in a loop it counts once.

  A transpose that only renames axes of length one, or that the layout undoes, is compiled to a bitcast and not found.
  One inside a fusion with a product is how the product reads, and not an array; it is not found either.
  """
  computations = read_computations(text)
  fused = {line.calls for lines in computations.values() for line in lines if line.opcode == "fusion"}
  found = []
  for name, lines in computations.items():
    if name in fused and any(line.opcode in PRODUCTS for line in lines):
      continue
    arrays = [re.match(r"\w+\[([\d,]+)\]", line.shape) for line in lines if line.opcode in ("copy", "transpose")]
    found += [(shape[0], math.prod(map(int, shape[1].split(",")))) for shape in arrays if shape]
  return sorted((pair for pair in found if pair[1] >= at_least), key=lambda pair: -pair[1])


def moved(text: str, at_least: int = 500_000) -> list[tuple[str, str]]:
  """(shape, module) of each array of so many elements that is only moved: copied, turned, cut out, or joined.

  What a fusion or a product does on its way is no array of its own; what is written where it lies is not moved.
  """
  described, computations = describe_instructions(text), read_computations(text)
  fused = {line.calls for lines in computations.values() for line in lines if line.opcode == "fusion"}
  found = []
  for name, lines in computations.items():
    for what in (described[line.name] for line in lines if name not in fused):
      sizes = re.fullmatch(r"\w+\[([\d,]+)\]", what.shape)
      is_large = sizes and math.prod(map(int, sizes[1].split(","))) >= at_least
      if is_large and what.kind in MOVES and what.bytes >= array_bytes(what.shape):
        found.append((what.shape, f"{what.path} ({what.pass_})"))
  return sorted(found)


def _scoped_bytes(line: str, name: str) -> int:
  configs = re.search(rf'"{name}":\[([^\]]*)\]', line)
  return sum(int(size) for size in re.findall(r'"size":"(\d+)"', configs[1])) if configs else 0
