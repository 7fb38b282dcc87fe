"""A tensor where it lies in its file, for those who copy it as it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lattice_jax.formats.mapped_file import MappedFile

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, eq=False)
class StoredTensor:
  """kind: F32, F16, BF16 or a type of GGUF blocks. start, stop: its bytes in the file.

  rows: uint8 view of them, a row of the tensor (of a vector: a number) along the last axis; the axes before together
  are the rows.
  """

  name: str
  kind: str
  file: MappedFile
  start: int
  stop: int
  rows: np.ndarray


def stored_tensor(name: str, kind: str, file: MappedFile, start: int, stop: int, num_rows: int) -> StoredTensor:
  """The tensor in bytes [start, stop) of the file."""
  return StoredTensor(name, kind, file, start, stop, file.array(start, stop).reshape(num_rows, -1))
