"""ImageNet64 as a TFDS data set, from the published zips of npz files."""

from __future__ import annotations

import functools
import io
import os
import posixpath
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from lattice_jax.data.archives import open_member, open_zip, read_array, read_array_header, read_blocks
from lattice_jax.data.builders.base import LocalBuilder
from lattice_jax.data.prepare.download import verify_original
from lattice_jax.data.progress import ProgressLines
from lattice_jax.data.published import IMAGENET64, ImageSet

_SIZE = 64
_IMAGE_BYTES = _SIZE * _SIZE * 3
_IMAGES_A_SHARD = 4096  # 50 MB, held in memory
_MOST_LABEL_BYTES = 1 << 24  # enough for all published images in one file


@dataclass
class _Unpacked:
  """The published images, and the key of each."""

  file: io.BufferedIOBase
  keys: list[str]
  labels: list[int]


class Imagenet64Npz(LocalBuilder):
  """Makes the records of TFDS's `imagenet_resized/64x64`, with the same pixels, labels, keys and order."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the three Imagenet64_*_npz.zip in the manual folder."
  image_set: ImageSet = IMAGENET64

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
      "image": tfds.features.Tensor(
        shape=(_SIZE, _SIZE, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES),
      "label": np.int64}))

  def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Any]]:
    folder = Path(dl_manager.manual_dir)
    check_zips(folder, self.image_set)
    for originals in self.image_set.zips.values():
      for original in originals:
        verify_original(original, folder / original.name, self.report)
    return {
      split: self._shards(split, [folder / original.name for original in originals])
      for split, originals in self.image_set.zips.items()}

  def _shards(self, split: str, zips: list[Path]) -> list[Any]:
    # Records are ordered by hashed keys, but zips can only be read from front to back, so they are unpacked first.
    file = tempfile.TemporaryFile(dir=self.data_dir)  # noqa: SIM115, closed by the scratch stack
    unpacked = _Unpacked(self.scratch.enter_context(file), [], [])
    for path in zips:
      self.report(f"unpacking {path}")
      _unpack(path, unpacked)
    hasher = hashing.Hasher(split)
    order = sorted(range(len(unpacked.keys)), key=lambda place: hasher.hash_key(unpacked.keys[place]))
    progress = ProgressLines(self.report, f"writing {split}", len(order), "images")
    return [
      functools.partial(_read_images, order[first:first + _IMAGES_A_SHARD], unpacked, progress, first)
      for first in range(0, len(order), _IMAGES_A_SHARD)]


def check_zips(folder: Path, image_set: ImageSet) -> None:
  """Raises ValueError if the folder lacks a published zip, by name and size."""
  for originals in image_set.zips.values():
    for original in originals:
      path = folder / original.name
      found = path.stat().st_size if path.is_file() else 0
      if found != original.size:
        raise ValueError(
          f"{folder} is not {image_set.name}: expected {original.name} of {original.size:,} bytes, found "
          f"{f'{found:,} bytes' if found else 'none'}; fetch it from {original.url}.")


def _unpack(path: Path, unpacked: _Unpacked) -> None:
  """Appends all images of a zip of npz files, without holding an array of images in memory."""
  with open_zip(path, path) as archive:
    for member in archive.infolist():
      if member.is_dir() or not member.file_size:
        continue
      where = f"{path}, {member.filename}"
      with open_member(archive, member, path) as stream, open_zip(stream, where) as arrays:
        labels = read_array(arrays, "labels", where, most_bytes=_MOST_LABEL_BYTES)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
          raise ValueError(f"{where} holds labels of {labels.dtype} {labels.shape}, not numbers; fetch it again.")
        _copy_images(arrays, len(labels), unpacked.file, where)
      unpacked.labels += (labels - 1).tolist()  # published labels start at 1
      unpacked.keys += [f"{posixpath.normpath(member.filename)}{number}" for number in range(len(labels))]


def _copy_images(arrays: zipfile.ZipFile, count: int, target: io.BufferedIOBase, where: str) -> None:
  if "data.npy" not in arrays.namelist():
    raise ValueError(f"{where} holds no array data; fetch it again.")
  with open_member(arrays, arrays.getinfo("data.npy"), where) as file:
    shape, is_fortran, dtype = read_array_header(file, where)
    if (shape, is_fortran, dtype) != ((count, _IMAGE_BYTES), False, np.dtype(np.uint8)):
      raise ValueError(f"{where} holds {dtype} {shape}, not uint8 {(count, _IMAGE_BYTES)}; fetch it again.")
    copied = 0
    for block in read_blocks(file, where):
      copied += len(block)
      if copied > count * _IMAGE_BYTES:
        break
      target.write(block)
  if copied != count * _IMAGE_BYTES:
    raise ValueError(f"{where} does not hold the {count:,} images that it declares; fetch it again.")


def _read_images(
    order: list[int], unpacked: _Unpacked, progress: ProgressLines, done: int) -> Iterator[tuple[str, dict[str, Any]]]:
  unpacked.file.flush()
  for number, place in enumerate(order, start=done + 1):
    planar = np.frombuffer(os.pread(unpacked.file.fileno(), _IMAGE_BYTES, place * _IMAGE_BYTES), np.uint8)
    image = np.ascontiguousarray(planar.reshape(3, _SIZE, _SIZE).transpose(1, 2, 0))
    yield unpacked.keys[place], {"image": image, "label": unpacked.labels[place]}
    progress.at(number)
