"""The parameters of one layer as a list of parts, and the memory that holds copies of them."""

from __future__ import annotations

import functools
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lattice_jax.formats.mapped_file import MappedFile
from lattice_jax.models.pretrained.stored_parts import Part

# JAX's CPU backend takes memory of NumPy over without a copy where it begins at such a multiple, and copies it if not.
ALIGNMENT = 64

Span = tuple[MappedFile, int, int]


@dataclass(frozen=True, eq=False)
class LayerParts:
  """name: for error messages. tree: of `Part`, in the structure of the parameters.

  spans: (file, start, stop) of the bytes that they are in, in order and without gaps that need not be read. mapped:
  those that are read through the mapping.
  """

  name: str
  tree: Any
  spans: tuple[Span, ...]
  mapped: tuple[Span, ...]

  @functools.cached_property
  def parts(self) -> list[Part]:
    return jax.tree.leaves(self.tree)

  @functools.cached_property
  def form(self) -> tuple[Any, ...]:
    """The same for layers whose arrays are alike."""
    return jax.tree.structure(self.tree), tuple((part.shape, part.dtype) for part in self.parts)

  @functools.cached_property
  def nbytes(self) -> int:
    """Of the memory that holds it."""
    return whole_pages(sum(aligned(part.nbytes) for part in self.parts))

  @functools.cached_property
  def file_bytes(self) -> int:
    """Bytes that are read of the file."""
    return sum(part.source.nbytes for part in self.parts)

  def shapes(self, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding), self.tree)


def layer_parts(name: str, tree: Any) -> LayerParts:
  """The parts, and where in the files they lie."""
  parts = jax.tree.leaves(tree)
  return LayerParts(name, tree, _spans(parts), _spans([part for part in parts if part.is_mapped]))


def _spans(parts: list[Part]) -> tuple[Span, ...]:
  tensors = {part.tensor.name: part.tensor for part in parts}.values()
  spans: list[Span] = []
  for tensor in sorted(tensors, key=lambda tensor: (str(tensor.file.path), tensor.start)):
    file, start, stop = spans[-1] if spans else (None, 0, 0)
    if tensor.file is file and tensor.start - stop < ALIGNMENT:
      spans[-1] = file, start, tensor.stop
    else:
      spans.append((tensor.file, tensor.start, tensor.stop))
  return tuple(spans)


def read_parts(layer: LayerParts, outs: list[np.ndarray], is_stopped: Callable[[], bool]) -> None:
  """Copies the parts into `outs`; it ends early where `is_stopped` says so.

  Raises:
    ValueError: the file has become shorter.
  """
  for part, out in zip(layer.parts, outs, strict=True):
    if is_stopped():
      return
    part.tensor.file.check_whole()
    part.fill(out)


def check_finite(layer: LayerParts, outs: list[np.ndarray]) -> None:
  """Raises ValueError if what was copied holds NaN or infinity."""
  for part, out in zip(layer.parts, outs, strict=True):
    if not part.is_finite(out):
      raise ValueError(
        f"{part.tensor.file.path}: tensor {part.tensor.name} holds NaN or infinity; get the file again.")


def hash_layer(layer: LayerParts, digest: Any) -> None:
  """Adds names, kinds and bytes of the layer's tensors to a hash of hashlib, in the order of their names."""
  tensors = {part.tensor.name: part.tensor for part in layer.parts}
  for name, tensor in sorted(tensors.items()):
    digest.update(f"{name} {tensor.kind} {tensor.rows.shape}\n".encode())
    tensor.file.check_whole()
    digest.update(tensor.file.array(tensor.start, tensor.stop))
    tensor.file.release(tensor.start, tensor.stop)


def fresh_memory(num_bytes: int) -> np.ndarray:
  """uint8 zeros of whole pages of their own, which go back to the system as soon as nothing refers to them.

  What the C library hands out it may keep for later.
  """
  return np.frombuffer(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def aligned(num_bytes: int) -> int:
  return math.ceil(num_bytes / ALIGNMENT) * ALIGNMENT


def whole_pages(num_bytes: int) -> int:
  return math.ceil(num_bytes / mmap.PAGESIZE) * mmap.PAGESIZE


def views(layer: LayerParts, memory: np.ndarray) -> list[np.ndarray]:
  """An array for each part, one behind another in `memory`."""
  outs, place = [], 0
  for part in layer.parts:
    outs.append(memory[place:place + part.nbytes].view(part.dtype).reshape(part.shape))
    place += aligned(part.nbytes)
  return outs

