"""The TFDS records of a data set, which exist already, are given, or are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lattice_jax.config import DataConfig
from lattice_jax.data.builders.base import LocalBuilder
from lattice_jax.data.builders.records import build_official, check_prepared, find_prepared
from lattice_jax.data.progress import Report


@dataclass(frozen=True)
class RecordSet:
  """How to get the records of a data set.

  counts: number of records in each published split.
  builder: ours, which makes the records from the published files.
  official: the name of TFDS's own builder, with its config.
  fetch: downloads the published files and returns their folder.
  check: raises ValueError for a folder without the published files, or if the disk is too small for what is made of
    them.
  """

  counts: dict[str, int]
  builder: type[LocalBuilder]
  official: str
  fetch: Callable[[], Path]
  check: Callable[[Path], None]


def get_records(wanted: RecordSet, data: DataConfig, report: Report, origin: Path | None, use_tfds: bool) -> Path:
  """The folder of complete records, from our builder or TFDS's own. See `prepare_books` for `origin`."""
  if origin is not None and use_tfds:
    raise ValueError("with --tfds TFDS downloads the data itself; leave out --tfds or --from.")
  folder = _find_or_make(wanted, data, report, origin, use_tfds)
  check_prepared(folder, (wanted.builder.name, wanted.official.partition("/")[0]), wanted.counts)
  report(f"records of {data.source} are at {folder}")
  return folder.resolve()


def _find_or_make(
    wanted: RecordSet, data: DataConfig, report: Report, origin: Path | None, use_tfds: bool) -> Path:
  data_dir = Path(data.path) / data.source / "tfds"
  if use_tfds:
    return build_official(wanted.official, data_dir)
  if origin is not None and not origin.is_dir():
    raise ValueError(
      f"--from {origin} is not a folder; give the one that holds the published files, or prepared TFDS records.")
  prepared = find_prepared(origin) if origin is not None else None
  if prepared is not None:
    return prepared
  builder = wanted.builder(data_dir=data_dir, report=report)
  if not Path(builder.data_dir).is_dir():
    originals = wanted.fetch() if origin is None else origin
    wanted.check(originals)
    report(f"making records of {originals}")
    return builder.prepare(originals)
  return Path(builder.data_dir)
