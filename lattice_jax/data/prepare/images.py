"""ImageNet64: from the published zips or TFDS records to the corpus that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lattice_jax.config import DataConfig
from lattice_jax.data.builders.imagenet64 import Imagenet64Npz, check_zips
from lattice_jax.data.builders.records import Records
from lattice_jax.data.corpus import corpus_command, corpus_folder, is_corpus_ready
from lattice_jax.data.corpus_writer import Recipe, write_corpus
from lattice_jax.data.photos import IMAGE_TOKENS
from lattice_jax.data.prepare.download import fetch_original, require_space
from lattice_jax.data.prepare.records import RecordSet, get_records
from lattice_jax.data.progress import Report
from lattice_jax.data.published import ImageSet
from lattice_jax.data.source import Document

# Pixels are on disk twice: as records, and either unpacked from the zips (before) or as tokens (after).
_COPIES = 2.1


def prepare_images(
    image_set: ImageSet, root: str | Path, report: Report, *, origin: Path | None = None, use_tfds: bool = False,
) -> Path:
  """The folder of the corpus. Zips, records and tokens that exist are not made again.

  Of the published training images, in the order of their records, the first are for training and the others for
  validation; the published validation images are for testing. A document is an image: rows from the top, pixels from
  the left, then red, green and blue.

  origin: a folder of the zips or of prepared TFDS records. Without it, the zips are downloaded.

  Raises ValueError if the files are not the published set, or the download fails.
  """
  data = DataConfig(source=image_set.name, path=str(root))
  if is_corpus_ready(data, report):
    return corpus_folder(data)
  records = get_records(_record_set(image_set, data, report), data, report, origin, use_tfds)
  splits = {
    "train": Records(records, "train", _to_document, 0, image_set.train_images),
    "validation": Records(records, "train", _to_document, image_set.train_images),
    "test": Records(records, "validation", _to_document)}
  folder = write_corpus(
    data, splits, Recipe(unit="dim", are_texts=False, official_words=None, origin=str(records)), report)
  report(f"training needs only {folder}; the zips and records can be deleted")
  return folder


def _record_set(image_set: ImageSet, data: DataConfig, report: Report) -> RecordSet:
  pixels = int(sum(image_set.images.values()) * IMAGE_TOKENS * _COPIES)
  originals = Path(data.path) / data.source / "originals"
  zips = [original for of_split in image_set.zips.values() for original in of_split]

  def fetch() -> Path:
    missing = sum(original.size for original in zips if not (originals / original.name).is_file())
    require_space(originals, missing + pixels, f"preparing {image_set.name}")
    for original in zips:
      fetch_original(original, originals, report, retry=corpus_command(data))
    return originals

  def check(folder: Path) -> None:
    check_zips(folder, image_set)
    require_space(corpus_folder(data), pixels, f"preparing {image_set.name}")

  return RecordSet(
    counts=image_set.images, builder=Imagenet64Npz, official="imagenet_resized/64x64", fetch=fetch, check=check)


def _to_document(record: dict[str, Any]) -> Document:
  return Document(title="", raw=record["image"].tobytes())
