"""A folder of safetensors as model hubs keep them: config.json and one file of tensors, or several with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F32", "F16", "BF16")


class SafetensorsFolder:
  """config: what config.json says. shapes: of every tensor. Tensors are read when they are asked for."""

  def __init__(self, path: Path):
    """Raises ValueError where a file is missing or damaged, or the index does not fit the folder."""
    self.path = path
    self.config = read_json(path / "config.json")
    self._parts = {file: _open(path / file) for file in _file_names(path)}
    self._file_of = {name: file for file, part in self._parts.items() for name in part.keys()}  # noqa: SIM118
    if sum(len(part.keys()) for part in self._parts.values()) != len(self._file_of):
      raise ValueError(f"{path} holds a tensor in several of its files; get the folder again.")
    self.shapes = {name: self._check(name) for name in self._file_of}

  def read(self, name: str) -> np.ndarray:
    """The tensor in float32."""
    return self._parts[self._file_of[name]].get_tensor(name).astype(np.float32, copy=False)

  def _check(self, name: str) -> tuple[int, ...]:
    header = self._parts[self._file_of[name]].get_slice(name)
    if header.get_dtype() not in _DTYPES:
      raise ValueError(
        f"{self.path / self._file_of[name]}: tensor {name} has type {header.get_dtype()}; weights of type "
        f"{', '.join(_DTYPES)} can be read.")
    return tuple(header.get_shape())


def read_json(path: Path) -> dict[str, Any]:
  """An object of a JSON file. Raises ValueError where it is missing or something else."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); a folder of weights needs it.") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON; get it again.") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds no JSON object; get it again.")
  return content


def _file_names(path: Path) -> list[str]:
  if not (path / INDEX).is_file():
    if not (path / SINGLE).is_file():
      raise ValueError(
        f"{path} holds neither {SINGLE} nor {INDEX}; other formats, such as pickled .bin files, are not read: get the "
        "safetensors of the model.")
    return [SINGLE]
  index = read_json(path / INDEX)
  files = index["weight_map"] if "weight_map" in index else None
  if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
    raise ValueError(f"{path / INDEX} has no weight_map from tensors to files; get it again.")
  for file in files.values():
    if file != Path(file).name or "\\" in file or not file.endswith(".safetensors"):
      raise ValueError(f"{path / INDEX} names {file!r}, which is no .safetensors file of the folder; it is not opened.")
  return sorted(set(files.values()))


def _open(path: Path) -> Any:
  try:
    return safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as error:
    raise ValueError(f"{path} is missing or not a whole safetensors file ({error}); get it again.") from error
