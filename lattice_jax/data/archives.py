"""Zips of unknown origin and the arrays inside them: any fault is one sentence, and nothing unpacks without bound."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lattice_jax.shown import first_line

_BLOCK = 1 << 20
_METHODS = {  # those that Python reads
  zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma"}
_ENCRYPTED = 1  # bit of the flags


def open_zip(file: Path | io.BufferedIOBase, where: Path | str) -> zipfile.ZipFile:
  """Raises ValueError, which names `where`, if the file is not a zip."""
  try:
    return zipfile.ZipFile(file)
  # zipfile and the libraries below it report damage by a dozen kinds of exception
  except Exception as error:
    raise damaged(where, error) from error


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: Path | str) -> io.BufferedIOBase:
  """Raises ValueError if the member is encrypted, compressed by an unknown method, or damaged."""
  if member.flag_bits & _ENCRYPTED:
    raise ValueError(f"{where}: {member.filename} is encrypted; unpack it with its password, and give what is inside.")
  if member.compress_type not in _METHODS:
    raise ValueError(
      f"{where}: {member.filename} is compressed by {_method_name(member.compress_type)}, and only "
      f"{', '.join(_METHODS.values())} can be read; unpack it with another program, and give what is inside.")
  try:
    return archive.open(member)
  except Exception as error:
    raise damaged(where, error) from error


def _method_name(method: int) -> str:
  name = zipfile.compressor_names.get(method)
  return f"method {method}" + (f", {name}" if name else "")


def read_blocks(file: io.BufferedIOBase, where: Path | str) -> Iterator[bytes]:
  """The content, block by block. Raises ValueError if it is damaged."""
  while True:
    try:
      block = file.read(_BLOCK)
    except Exception as error:
      raise damaged(where, error) from error
    if not block:
      return
    yield block


def read_array(archive: zipfile.ZipFile, name: str, where: Path | str, *, most_bytes: int) -> np.ndarray:
  """An array of an npz. Raises ValueError if it is missing, damaged, too large, or holds pickled objects."""
  if f"{name}.npy" not in archive.namelist():
    raise ValueError(f"{where} holds no array {name}; fetch it again.")
  member = archive.getinfo(f"{name}.npy")
  if member.file_size > most_bytes:
    raise ValueError(
      f"{where}: the array {name} says it has {member.file_size:,} bytes, more than {most_bytes:,}; fetch it again.")
  with open_member(archive, member, where) as file:
    content = io.BytesIO(b"".join(read_blocks(file, where)))
  shape, is_fortran, dtype = read_array_header(content, f"{where}, {name}")
  left = content.getbuffer()[content.tell():]
  if is_fortran or math.prod(shape) * dtype.itemsize != len(left):
    raise ValueError(f"{where}: the array {name} of {dtype} {shape} has {len(left):,} bytes; fetch it again.")
  return np.frombuffer(left, dtype).reshape(shape)


def read_array_header(file: io.BufferedIOBase, where: Path | str) -> tuple[tuple[int, ...], bool, np.dtype]:
  """(shape, whether the order is Fortran's, dtype). Raises ValueError if there is no header, or for pickled objects."""
  read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
  try:
    shape, is_fortran, dtype = read[np.lib.format.read_magic(file)](file)
  except Exception as error:
    raise damaged(where, error) from error
  if dtype.hasobject:
    raise ValueError(f"{where} holds pickled objects, which are not loaded because they can run code; fetch it again.")
  if min(shape, default=0) < 0:
    raise ValueError(f"{where} has the shape {shape}; fetch it again.")
  return shape, is_fortran, dtype


def damaged(where: Path | str, error: Exception) -> ValueError:
  """The error for a file that cannot be read."""
  return ValueError(f"{where} is damaged ({first_line(error)}); fetch it again.")
