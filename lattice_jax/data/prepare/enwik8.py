"""enwik8: downloads it or takes a local copy, verifies it, and only then puts it into the data folder.

A file with its final name is always complete, as it is written under another name and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from lattice_jax.data.archives import open_member, open_zip, read_blocks
from lattice_jax.data.builders.enwik8 import Enwik8, record_counts
from lattice_jax.data.builders.records import Records, check_prepared, find_prepared
from lattice_jax.data.prepare.download import download, require_space
from lattice_jax.data.progress import Report
from lattice_jax.data.published import Original, check_original, prepare_command, prepared_path, sha256_of_file
from lattice_jax.data.source import SPLITS, Document


def prepare_original(original: Original, root: str | Path, report: Report, *, origin: Path | None = None) -> Path:
  """The path of the verified file, which is fetched unless it exists.

  origin: a local copy, raw or in a zip, or a folder of TFDS records. Without it, the file is downloaded, and an
    interrupted download is resumed.

  Raises ValueError if the file is not the published one, or the download fails.
  """
  target = prepared_path(root, original)
  if _is_ready(original, target, report):
    return target
  require_space(target.parent, 2 * original.size, f"preparing {original.name}")
  target.parent.mkdir(parents=True, exist_ok=True)
  if origin is not None:
    if not origin.exists():
      raise ValueError(f"--from {origin} does not exist; give the path of {original.name} or of its zip.")
    _install(original, origin, target)
  else:
    archive = target.parent / f"{original.name}.zip.part"
    download(original.url, archive, report, retry=prepare_command(root, original.name))
    try:
      _install(original, archive, target)
    finally:
      archive.unlink()  # only an interrupted download keeps it
  report(f"{original.name}: {original.size:,} bytes, verified, at {target}")
  return target


def write_records(original: Original, root: str | Path, report: Report) -> Path:
  """The folder of TFDS records of the prepared file; see `builders.enwik8`."""
  path = prepared_path(root, original)
  folder = Enwik8(data_dir=path.parent / "tfds", report=report).prepare(path.parent)
  report(f"TFDS records of {original.name} are at {folder}")
  return folder


def _is_ready(original: Original, target: Path, report: Report) -> bool:
  if not target.is_file():
    return False
  try:
    check_original(original, target.stat().st_size, sha256_of_file(target), target)
  except ValueError as error:
    report(f"{error} It will be replaced.")
    return False
  report(f"{original.name}: {original.size:,} bytes, verified, already at {target}")
  return True


def _install(original: Original, origin: Path, target: Path) -> None:
  """Copies the raw file from `origin` to `target` if it is the published one."""
  unfinished = target.with_name(target.name + ".unfinished")
  try:
    with _open_raw(original, origin) as (blocks, size):
      check_original(original, size, original.sha256, origin)  # only the size, to refuse wrong files before copying
      sha256 = _copy(blocks, unfinished)
    check_original(original, unfinished.stat().st_size, sha256, origin)
    unfinished.replace(target)
  finally:
    unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_raw(original: Original, origin: Path) -> Iterator[tuple[Iterable[bytes], int]]:
  """(blocks, size) of the file, from TFDS records, a zip or the file itself."""
  if origin.is_dir():
    yield _read_records(original, origin), original.size
    return
  if not zipfile.is_zipfile(origin):
    with origin.open("rb") as file:
      yield read_blocks(file, origin), origin.stat().st_size
    return
  with open_zip(origin, origin) as archive:
    members = [info for info in archive.infolist() if Path(info.filename).name == original.name]
    if len(members) != 1:
      found = f"holds {len(members)} files" if members else "holds no file"
      raise ValueError(f"{origin} {found} named {original.name}; it holds {_listed(archive.namelist())}.")
    with open_member(archive, members[0], origin) as file:
      yield read_blocks(file, origin), members[0].file_size


def _listed(names: list[str]) -> str:
  return ", ".join(name[:80] for name in names[:5]) + (f" and {len(names) - 5:,} others" if len(names) > 5 else "")


def _read_records(original: Original, origin: Path) -> Iterator[bytes]:
  folder = find_prepared(origin)
  if folder is None:
    raise ValueError(f"--from {origin} holds no TFDS records; give the path of {original.name} or of its zip.")
  check_prepared(folder, (Enwik8.name,), record_counts(original))
  for split in SPLITS:
    records = Records(folder, split, lambda record: Document(title="", raw=record["bytes"].tobytes()))
    for number in range(len(records)):
      yield records[number].raw


def _copy(blocks: Iterable[bytes], target: Path) -> str:
  digest = hashlib.sha256()
  with target.open("wb") as file:
    for block in blocks:
      digest.update(block)
      file.write(block)
  return digest.hexdigest()
