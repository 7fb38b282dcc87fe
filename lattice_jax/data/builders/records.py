"""Prepared TFDS data, ours or official, as documents of a corpus."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from lattice_jax.data.corpus_writer import Document

_INFO = "dataset_info.json"


def find_prepared(path: Path) -> Path | None:
  """The folder of TFDS records: `path`, or below it as name/version or name/config/version. None if there is none."""
  for levels in ("", "*/", "*/*/", "*/*/*/"):
    found = sorted(path.glob(levels + _INFO))
    if found:
      return found[-1].parent
  return None


def check_prepared(folder: Path, names: tuple[str, ...], counts: dict[str, int]) -> None:
  """Raises ValueError unless the folder holds one of the named data sets as array_record, with that many records."""
  info = json.loads((folder / _INFO).read_text(encoding="utf-8"))
  if info["name"] not in names:
    raise ValueError(f"{folder} holds the TFDS data set {info['name']}, not {' or '.join(names)}.")
  if info["fileFormat"] != "array_record":
    raise ValueError(
      f"{folder} holds {info['fileFormat']} files, which only TensorFlow reads; build them again with "
      "file_format=\"array_record\".")
  found = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
  if found != counts:
    raise ValueError(
      f"{folder} is not the published {info['name']}: expected {_in_words(counts)} records, found {_in_words(found)}.")


def _in_words(counts: dict[str, int]) -> str:
  return ", ".join(f"{count:,} {split}" for split, count in counts.items())


class Records:
  """Records [start, stop) of a prepared split, each as `convert` makes it; a damaged one is an error that names it."""

  def __init__(
      self, folder: Path, split: str, convert: Callable[[dict[str, Any]], Document], start: int = 0,
      stop: int | None = None):
    self._folder = folder
    self._split = split
    self._convert = convert
    self._source = tfds.builder_from_directory(folder).as_data_source(split)
    self._range = range(len(self._source))[start:stop]

  def __len__(self) -> int:
    return len(self._range)

  def __getitem__(self, index: int) -> Document:
    number = self._range[index]
    try:
      record = self._source[number]
    except (RuntimeError, OSError, ValueError) as error:
      raise ValueError(
        f"record {number:,} of {self._split} in {self._folder} cannot be read ({error}); remove that folder and make "
        "the records again.") from error
    return self._convert(record)


def build_official(name: str, data_dir: Path) -> Path:
  """The records of one of TFDS's own builders, downloaded and prepared by it.

  Raises:
    ValueError: what they need and do not require is not installed.
  """
  if not all(importlib.util.find_spec(needed) for needed in ("tensorflow", "importlib_resources")):
    raise ValueError(
      f"--tfds has TFDS's own {name} make the records, which needs TensorFlow, and that is not installed; run `pip "
      "install tensorflow-cpu importlib_resources`, or leave --tfds out.")
  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare()
  return Path(builder.data_dir)
