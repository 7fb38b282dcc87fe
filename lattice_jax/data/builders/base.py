"""The base class of our TFDS builders."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import tensorflow_datasets as tfds

from lattice_jax.data.progress import Report


def say_nothing(line: str) -> None:
  del line


class LocalBuilder(tfds.core.ShardBasedBuilder):
  """Writes array_record shards from local files, in order; holds one shard in memory at a time.

  TFDS shuffles more than a gigabyte on disk through TensorFlow. Builders whose published order is the shuffled one
  therefore yield their examples in that order.
  """

  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # where TFDS would look for checksums; the builders verify their files themselves
  scratch: contextlib.ExitStack  # closes temporary files when writing ends or fails

  def __init__(self, *, data_dir: str | Path, report: Report = say_nothing):
    super().__init__(data_dir=data_dir, file_format="array_record")
    self.report = report

  def prepare(self, manual_dir: Path) -> Path:
    """The folder of the records, which are made from the files in `manual_dir` unless they exist."""
    folder = Path(self.data_dir)
    for unfinished in folder.parent.glob("incomplete.*"):
      shutil.rmtree(unfinished)  # left by a killed process
    if not folder.is_dir():
      with contextlib.ExitStack() as self.scratch:
        self.download_and_prepare(
          download_config=tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False))
    return folder

  def _log_download_bytes(self) -> None:
    """Silent: TFDS would print that the size is unknown."""

  def _log_download_done(self) -> None:
    """Silent: the caller reports where the records are."""
