"""GGUF files: metadata and tensors.

The header is parsed here and not by the `gguf` library, whose reader trusts all counts and lengths: with a damaged one
it runs endlessly or fails far from the cause. The library decodes the quantised blocks.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lattice_jax.formats.mapped_file import MappedFile
from lattice_jax.formats.stored_tensor import StoredTensor, stored_tensor
from lattice_jax.shown import shown, shown_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_MAX_AXES = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ADVICE = "use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K-quant"


class _UnknownTypeError(Exception):
  """The `gguf` library does not know the number of a tensor's type."""


@dataclass(frozen=True)
class GGUFTensor:
  """shape: row-major, as in NumPy. start: offset in the file, in bytes."""

  shape: tuple[int, ...]
  kind: GGMLQuantizationType
  start: int

  @property
  def num_bytes(self) -> int:
    block_len, block_bytes = GGML_QUANT_SIZES[self.kind]
    return math.prod(self.shape) // block_len * block_bytes


class GGUFFile:
  """fields: metadata by key, with strings and lists as in Python but numbers in arrays. tensors: by name."""

  def __init__(self, path: Path):
    """Raises ValueError if the file is not a complete GGUF file or has an unknown type."""
    self.path = path
    try:
      self._file = MappedFile(path)
      self.fields, self.tensors = _read_header(self._file.raw)
    except _UnknownTypeError as error:
      raise ValueError(f"{path}: {error}, so it is newer than the gguf library or damaged; {_ADVICE}.") from error
    except OSError as error:
      raise ValueError(f"{path} cannot be read ({error.strerror}); get it again.") from error
    except (ValueError, OverflowError) as error:
      raise ValueError(f"{path} is not a whole GGUF file: {error}; get it again.") from error

  @classmethod
  def open(cls, path: Path) -> GGUFFile:
    """The file as it was read last, if that was this one: weights and tokenizer lie in the same.

    Raises:
      ValueError: as the constructor.
    """
    try:
      state = path.stat()
    except OSError:
      return cls(path)
    return _read_once(path, state.st_ino, state.st_mtime_ns, state.st_size)

  def text(self, key: str) -> str | None:
    """A text field, or None if it is absent. Raises ValueError if it is something else."""
    value = self.fields.get(key)
    if value is not None and not isinstance(value, str):
      raise ValueError(f"{self.path} says {key}={shown(value)}, which is not text; get it again.")
    return value

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32. Raises ValueError for a type that cannot be read."""
    tensor = self.tensors[name]
    try:
      values = dequantize(self._rows(tensor), tensor.kind).reshape(tensor.shape)
    except RuntimeError as error:
      raise ValueError(
        f"{self.path}: tensor {shown_name(name)} has type {tensor.kind.name}, which holds no weights that can be read; "
        f"{_ADVICE}.") from error
    return self._apart(tensor, values)

  def read_codes(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(int8 codes, float32 scales, float32 offsets) of a matrix in blocks of 32, which is codes · scales + offsets.

    Scales and offsets have one column a block. None for a matrix of another type.
    """
    tensor = self.tensors[name]
    if tensor.kind not in _BLOCKS or len(tensor.shape) != 2:
      return None
    block_len, block_bytes = GGML_QUANT_SIZES[tensor.kind]
    blocks = self._rows(tensor).reshape(-1, block_bytes)
    codes, scale, offset = _BLOCKS[tensor.kind](blocks)
    rows, columns = tensor.shape
    codes = self._apart(tensor, codes.reshape(rows, columns))
    return codes, *(x.astype(np.float32).reshape(rows, columns // block_len) for x in (scale, offset))

  def stored(self, name: str) -> StoredTensor:
    """The tensor where it lies in the file."""
    tensor = self.tensors[name]
    stop = tensor.start + tensor.num_bytes
    return stored_tensor(name, tensor.kind.name, self._file, tensor.start, stop, tensor.shape[0])

  def _apart(self, tensor: GGUFTensor, values: np.ndarray) -> np.ndarray:
    """The values in memory of their own, so that the process need not keep the file's pages beside them."""
    values = values.copy() if np.may_share_memory(values, self._rows(tensor)) else values
    self._file.release(tensor.start, tensor.start + tensor.num_bytes)
    return values

  def _rows(self, tensor: GGUFTensor) -> np.ndarray:
    return self._file.array(tensor.start, tensor.start + tensor.num_bytes).reshape(-1, _row_bytes(tensor))


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
  """A block's numbers of 4 bits: first the lower halves of its bytes, then the upper ones."""
  packed = blocks[:, start:start + 16]
  return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.int8)


def _float16(blocks: np.ndarray, start: int) -> np.ndarray:
  return blocks[:, start:start + 2].copy().view(np.float16)


def _q4_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  scale = _float16(blocks, 0)
  return _halves(blocks, 2) - np.int8(8), scale, np.zeros_like(scale)


def _q4_1(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  return _halves(blocks, 4), _float16(blocks, 0), _float16(blocks, 2)


def _q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  scale = _float16(blocks, 0)
  return blocks[:, 2:].view(np.int8), scale, np.zeros_like(scale)


_BLOCKS = {
  GGMLQuantizationType.Q4_0: _q4_0, GGMLQuantizationType.Q4_1: _q4_1, GGMLQuantizationType.Q8_0: _q8_0}


@functools.lru_cache(maxsize=1)
def _read_once(path: Path, *state: int) -> GGUFFile:
  return GGUFFile(path)


def _row_bytes(tensor: GGUFTensor) -> int:
  block_len, block_bytes = GGML_QUANT_SIZES[tensor.kind]
  return tensor.shape[-1] // block_len * block_bytes


class _Cursor:
  """Reads forward and raises ValueError at the end."""

  def __init__(self, raw: mmap.mmap):
    self.raw = raw
    self.place = 0

  def take(self, count: int) -> bytes:
    if count > len(self.raw) - self.place:
      raise ValueError(
        f"{count:,} bytes are announced at byte {self.place:,}, where {len(self.raw) - self.place:,} are left")
    self.place += count
    return self.raw[self.place - count:self.place]

  def number(self, code: str) -> Any:
    return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

  def count(self, what: str, least_bytes: int) -> int:
    """A count of things that take at least this many bytes each."""
    number = self.number("Q")
    left = len(self.raw) - self.place
    if number * least_bytes > left:
      raise ValueError(f"it announces {number:,} {what} in {left:,} bytes")
    return number

  def text(self) -> str:
    return self.take(self.number("Q")).decode("utf-8")

  def texts(self, count: int) -> list[str]:
    """So many texts: vocabularies hold a hundred thousand, so nothing is called for each but what must be."""
    raw, size_at, found = self.raw, struct.Struct("<Q").unpack_from, []
    for _ in range(count):
      start = self.place + 8
      if start > len(raw) or start + size_at(raw, self.place)[0] > len(raw):
        found.append(self.text())  # says what is wrong
        continue
      self.place = start + size_at(raw, start - 8)[0]
      found.append(raw[start:self.place].decode("utf-8"))
    return found

  def value(self, kind: int) -> Any:
    if kind in _SCALARS:
      return self.number(_SCALARS[kind])
    if kind == _STRING:
      return self.text()
    if kind == _ARRAY:
      return self.array()
    raise ValueError(f"its metadata hold a value of the unknown type {kind}")

  def array(self) -> Any:
    kind = self.number("I")
    if kind == _STRING:
      return self.texts(self.count("strings", 8))
    if kind not in _SCALARS:
      raise ValueError(f"its metadata hold a list of the unknown type {kind}")
    dtype = np.dtype(f"<{_SCALARS[kind]}")
    return np.frombuffer(self.take(self.count("numbers", dtype.itemsize) * dtype.itemsize), dtype)


def _read_header(raw: mmap.mmap) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
  cursor = _Cursor(raw)
  if cursor.take(4) != MAGIC:
    raise ValueError(f"it does not start with {MAGIC.decode()}")
  version = cursor.number("I")
  if version not in VERSIONS:
    raise ValueError(f"its version is {version}, or it is big-endian; little-endian versions 2 and 3 can be read")
  num_tensors, num_fields = cursor.count("tensors", 24), cursor.count("metadata", 12)
  fields: dict[str, Any] = {}
  for _ in range(num_fields):
    key = cursor.text()
    if key in fields:
      raise ValueError(f"its metadata hold {shown(key)} twice")
    fields[key] = cursor.value(cursor.number("I"))
  headers: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
  for _ in range(num_tensors):
    name, *rest = _read_tensor_header(cursor)
    if name in headers:
      raise ValueError(f"it holds the tensor {shown(name)} twice")
    headers[name] = tuple(rest)
  alignment = fields["general.alignment"] if "general.alignment" in fields else 32
  if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1:
    raise ValueError(f"its alignment is {shown(alignment)}")
  first = -(-cursor.place // alignment) * alignment
  tensors = {name: GGUFTensor(shape, kind, first + start) for name, (shape, kind, start) in headers.items()}
  end, last = first, ""
  for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
    if tensor.start < end:
      raise ValueError(f"its tensors {shown_name(last)} and {shown_name(name)} overlap")
    end, last = tensor.start + tensor.num_bytes, name
    if end > len(raw):
      raise ValueError(f"tensor {shown_name(name)} ends at byte {end:,} of {len(raw):,}")
  return fields, tensors


def _read_tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
  name = cursor.text()
  num_axes = cursor.number("I")
  if not 1 <= num_axes <= _MAX_AXES:
    raise ValueError(f"tensor {shown_name(name)} has {num_axes} axes")
  shape = tuple(cursor.number("Q") for _ in range(num_axes))[::-1]
  number = cursor.number("I")
  if number not in set(GGMLQuantizationType):
    raise _UnknownTypeError(f"tensor {shown_name(name)} has the unknown type {number}")
  kind = GGMLQuantizationType(number)
  if 0 in shape or shape[-1] % GGML_QUANT_SIZES[kind][0]:
    raise ValueError(f"tensor {shown_name(name)} of type {kind.name} cannot have the shape {shape}")
  return name, shape, kind, cursor.number("Q")
