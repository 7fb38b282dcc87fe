"""A folder of safetensors as on model hubs: config.json and one file of tensors, or several with an index."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lattice_jax.formats.json_file import parse_object, read_json
from lattice_jax.formats.mapped_file import MappedFile
from lattice_jax.formats.stored_tensor import StoredTensor, stored_tensor
from lattice_jax.shown import shown, shown_name

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")
_ADAPTER = "adapter_config.json"
# beginnings of hidden files, and of files that hold the same weights in another layout
_NO_WEIGHTS = (".", "consolidated")


class SafetensorsFolder:
  """config: the content of config.json. shapes: of every tensor. Tensors are read on demand."""

  def __init__(self, path: Path):
    """Raises ValueError if a file is missing or damaged, or the folder holds more than one model."""
    self.path = path
    self.config = read_json(path / "config.json")
    place = _weight_map(path)
    files = sorted(set(place.values())) if place else [SINGLE]
    parts = {file: _open(path / file) for file in files}
    for file in files:
      _read_header(path / file)
    self._maps: dict[str, tuple[MappedFile, dict[str, Any], int]] = {}
    _check_alone(path, files)
    self._file_of = {name: file for file, part in parts.items() for name in part.keys()}  # noqa: SIM118
    if sum(len(part.keys()) for part in parts.values()) != len(self._file_of):
      raise ValueError(f"{path} holds a tensor in several of its files; get the folder again.")
    _check_index(path, place, self._file_of)
    self.shapes = {name: self._check(name, parts[file]) for name, file in self._file_of.items()}

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32. Raises ValueError if the file cannot be read any more."""
    # Opened for each: closing a file takes the pages that were read out of the process.
    with _open(self.path / self._file_of[name]) as part:
      return part.get_tensor(name).astype(np.float32, copy=False)

  def read_codes(self, name: str) -> None:
    """No tensor here is stored as codes and scales."""

  def stored(self, name: str) -> StoredTensor:
    """The tensor where it lies in its file. Raises ValueError if the file cannot be read any more."""
    place = self._file_of[name]
    if place not in self._maps:
      self._maps[place] = _map(self.path / place)
    file, header, first = self._maps[place]
    start, stop = (first + offset for offset in header[name]["data_offsets"])
    return stored_tensor(name, header[name]["dtype"], file, start, stop, self.shapes[name][0])

  def _check(self, name: str, part: Any) -> tuple[int, ...]:
    header = part.get_slice(name)
    shape = tuple(header.get_shape())
    if header.get_dtype() not in _DTYPES:
      raise ValueError(
        f"{self.path / self._file_of[name]}: tensor {shown_name(name)} has type {header.get_dtype()}; weights of type "
        f"{', '.join(_DTYPES)} can be read.")
    if 0 in shape:
      raise ValueError(
        f"{self.path / self._file_of[name]}: tensor {shown_name(name)} has shape {shape}, which holds no weights; get "
        "it again.")
    return shape


def _weight_map(path: Path) -> dict[str, str]:
  """The file of every tensor according to the index; empty if there is a single file without one."""
  if not (path / INDEX).is_file():
    if not (path / SINGLE).is_file():
      raise ValueError(
        f"{path} holds neither {SINGLE} nor {INDEX}; other formats, such as pickled .bin files, are not read: get the "
        "safetensors of the model.")
    return {}
  index = read_json(path / INDEX)
  files = index["weight_map"] if "weight_map" in index else None
  if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
    raise ValueError(f"{path / INDEX} has no weight_map from tensors to files; get it again.")
  for file in files.values():
    is_name = file == Path(file).name and "\\" not in file and file.isprintable() and len(file) < 256
    if not is_name or not file.endswith(".safetensors"):
      raise ValueError(
        f"{path / INDEX} names {shown(file)}, which is no .safetensors file of the folder; it is not opened.")
  return files


def _check_alone(path: Path, files: list[str]) -> None:
  """Refuses ambiguous folders: with another file of weights, or with an adapter, which would have to be applied."""
  others = [
    file.name for file in sorted(path.iterdir())
    if file.suffix in (".safetensors", ".gguf") and file.name not in files and not file.name.startswith(_NO_WEIGHTS)]
  if (path / _ADAPTER).is_file():
    raise ValueError(f"{path} holds {_ADAPTER}, and adapters are not applied; merge it into the weights.")
  if others:
    wanted = INDEX if (path / INDEX).is_file() else SINGLE
    raise ValueError(
      f"{path} holds {shown_name(others[0])} beside the weights that {wanted} stands for, so it is not clear which are "
      "meant; keep one of them in the folder.")


def _check_index(path: Path, place: dict[str, str], file_of: dict[str, str]) -> None:
  wrong = sorted(name for name in {*place, *file_of} if place and (name not in place or name not in file_of))
  wrong = wrong or sorted(name for name in place if place[name] != file_of[name])
  if wrong:
    raise ValueError(
      f"{path / INDEX} and the files that it names do not agree on where tensor {shown_name(wrong[0])} is, so they "
      "belong to different models; get the folder again.")


def _open(path: Path) -> Any:
  try:
    if not path.is_file():
      raise SafetensorError("there is no such file")
    part = safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as error:
    reason = str(error).splitlines()[0] if str(error) else "it cannot be opened"
    raise ValueError(
      f"{path} is missing or not a whole safetensors file ({reason[:200]}); get it again.") from error
  return part


def _map(path: Path) -> tuple[MappedFile, dict[str, Any], int]:
  """(the file, what its header says, where the bytes lie that it counts from)."""
  try:
    return MappedFile(path), *_read_header(path)
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); get it again.") from error


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
  """(the header, where it ends). It refuses a repeated tensor, of which the library would keep the last."""
  with path.open("rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    return parse_object(file.read(size), f"the header of {path}"), 8 + size
