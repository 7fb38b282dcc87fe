"""Reads TFDS records, from our builders or TFDS's own, as documents of a corpus."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from lattice_jax.data.published import counts_in_words
from lattice_jax.data.source import Document
from lattice_jax.shown import first_line

_INFO = "dataset_info.json"


def find_prepared(path: Path) -> Path | None:
  """The folder of TFDS records: `path`, or name/version or name/config/version below it. None if there is none."""
  for levels in ("", "*/", "*/*/", "*/*/*/"):
    found = sorted(path.glob(levels + _INFO))
    if found:
      return found[-1].parent
  return None


def check_prepared(folder: Path, names: tuple[str, ...], counts: dict[str, int]) -> None:
  """Raises ValueError unless the folder holds one of the named data sets as array_record with these counts."""
  try:
    info = json.loads((folder / _INFO).read_text(encoding="utf-8"))
    name, file_format = str(info["name"]), str(info["fileFormat"])
    found = {str(split["name"]): sum(map(int, split["shardLengths"])) for split in info["splits"]}
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(
      f"{folder / _INFO} was not written by TFDS ({type(error).__name__}: {first_line(error)}); remove the folder, "
      "and make the records again.") from error
  if name not in names:
    raise ValueError(f"{folder} holds the TFDS data set {name}, not {' or '.join(names)}.")
  if file_format != "array_record":
    raise ValueError(
      f"{folder} holds {file_format} files, which only TensorFlow reads; build them again with "
      "file_format=\"array_record\".")
  if found != counts:
    raise ValueError(
      f"{folder} is not the published {name}: expected {counts_in_words(counts)} records, found "
      f"{counts_in_words(found)}.")


class Records:
  """Records [start, stop) of a prepared split, converted to documents. Reading a damaged one raises ValueError."""

  def __init__(
      self, folder: Path, split: str, convert: Callable[[dict[str, Any]], Document], start: int = 0,
      stop: int | None = None):
    self._folder = folder
    self._split = split
    self._convert = convert
    try:
      self._source = tfds.builder_from_directory(folder).as_data_source(split)
      self._range = range(len(self._source))[start:stop]
    # TFDS and its libraries report damage by a dozen kinds of exception
    except Exception as error:
      raise self._unreadable(split, error) from error

  def __len__(self) -> int:
    return len(self._range)

  def __getitem__(self, index: int) -> Document:
    number = self._range[index]
    try:
      return self._convert(self._source[number])
    except Exception as error:
      raise self._unreadable(f"record {number:,} of {self._split}", error) from error

  def _unreadable(self, what: str, error: Exception) -> ValueError:
    return ValueError(
      f"{what} in {self._folder} cannot be read ({first_line(error)}); remove that folder and make the records again.")


def build_official(name: str, data_dir: Path) -> Path:
  """The records of one of TFDS's own builders, which downloads and prepares them.

  Raises ValueError if libraries that the builder needs are not installed.
  """
  if not all(importlib.util.find_spec(needed) for needed in ("tensorflow", "importlib_resources")):
    raise ValueError(
      f"--tfds makes the records with TFDS's own {name}, which needs TensorFlow, and that is not installed; run `pip "
      "install tensorflow-cpu importlib_resources`, or leave --tfds out.")
  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare()
  return Path(builder.data_dir)
