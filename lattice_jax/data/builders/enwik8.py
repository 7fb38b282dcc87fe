"""enwik8 as a TFDS data set with records of 64 KiB."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lattice_jax.data.builders.base import LocalBuilder
from lattice_jax.data.prepare.download import verify_original
from lattice_jax.data.published import ENWIK8, Original
from lattice_jax.data.sources import byte_splits

_RECORD_BYTES = 1 << 16
_SHARD_BYTES = 1 << 25


class Enwik8(LocalBuilder):
  """The first 100,000,000 bytes of a Wikipedia dump, split after 90 and 95 million; records are in the file's order."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the raw file enwik8 in the manual folder."
  original: Original = ENWIK8

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
      "bytes": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES),
      "offset": np.int64}))

  def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Any]]:
    path = Path(dl_manager.manual_dir) / self.original.name
    verify_original(self.original, path, self.report)
    return {
      split: [
        functools.partial(_records, path, begin, min(begin + _SHARD_BYTES, stop))
        for begin in range(start, stop, _SHARD_BYTES)]
      for split, (start, stop) in byte_splits(self.original.size).items()}


def record_counts(original: Original) -> dict[str, int]:
  """The number of records in each split."""
  return {
    split: len(range(start, stop, _RECORD_BYTES)) for split, (start, stop) in byte_splits(original.size).items()}


def _records(path: Path, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
  with path.open("rb") as file:
    file.seek(start)
    for offset in range(start, stop, _RECORD_BYTES):
      raw = file.read(min(_RECORD_BYTES, stop - offset))
      yield offset, {"bytes": np.frombuffer(raw, np.uint8), "offset": offset}
