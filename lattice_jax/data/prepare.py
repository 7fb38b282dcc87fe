"""Brings a published file into the data folder: downloads or takes a local copy, verifies, and only then puts it there.

A file under its final name is always whole: it is written beside it and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lattice_jax.data.files import (
  Original,
  check_original,
  prepare_command,
  prepared_path,
  sha256_of_file,
)

_BLOCK = 1 << 20
Report = Callable[[str], None]


def prepare_original(original: Original, root: str | Path, report: Report, *, origin: Path | None = None) -> Path:
  """The place of the verified file, which is fetched unless it is there; doing it twice does nothing the second time.

  origin: a local copy, raw or in a zip. Without it the file is downloaded, and an interrupted download goes on.

  Raises:
    ValueError: what was found is not the published file, or nothing could be fetched.
  """
  target = prepared_path(root, original)
  if _is_ready(original, target, report):
    return target
  target.parent.mkdir(parents=True, exist_ok=True)
  if origin is not None:
    if not origin.is_file():
      raise ValueError(f"--from {origin} is not a file; give the path of {original.name} or of its zip.")
    _install(original, origin, target)
  else:
    archive = target.parent / f"{original.name}.zip.part"
    _download(original, archive, report, retry=prepare_command(root, original.name))
    try:
      _install(original, archive, target)
    finally:
      archive.unlink()  # kept only while a download can go on
  report(f"{original.name}: {original.size:,} bytes, verified, at {target}")
  return target


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
  """Copies the raw file out of `origin` under the name `target`, if it is the published one."""
  unfinished = target.with_name(target.name + ".unfinished")
  try:
    with _open_raw(original, origin) as (stream, size):
      check_original(original, size, original.sha256, origin)  # the size alone: wrong files are refused before copying
      sha256 = _copy(stream, unfinished)
    check_original(original, unfinished.stat().st_size, sha256, origin)
    unfinished.replace(target)
  except (zipfile.BadZipFile, EOFError) as error:
    raise ValueError(f"{origin} is a damaged zip ({error}); fetch it again.") from error
  finally:
    unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_raw(original: Original, origin: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
  """The bytes of the file and how many they are, from a zip or from the file itself."""
  if not zipfile.is_zipfile(origin):
    with origin.open("rb") as file:
      yield file, origin.stat().st_size
    return
  with zipfile.ZipFile(origin) as archive:
    members = [info for info in archive.infolist() if Path(info.filename).name == original.name]
    if not members:
      raise ValueError(f"{origin} holds no file named {original.name}; it holds {', '.join(archive.namelist()[:5])}.")
    with archive.open(members[0]) as file:
      yield file, members[0].file_size


def _copy(stream: io.BufferedIOBase, target: Path) -> str:
  digest = hashlib.sha256()
  with target.open("wb") as file:
    while block := stream.read(_BLOCK):
      digest.update(block)
      file.write(block)
  return digest.hexdigest()


def _download(original: Original, archive: Path, report: Report, *, retry: str) -> None:
  """Fetches `original.url` to `archive`, going on where an earlier attempt left off."""
  have = archive.stat().st_size if archive.exists() else 0
  request = urllib.request.Request(original.url, headers={"Range": f"bytes={have}-"} if have else {})
  report(f"downloading {original.url}" + (f" from byte {have:,} on" if have else ""))
  try:
    with urllib.request.urlopen(request, timeout=30) as response:
      goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
      left = response.headers["Content-Length"]
      start = have if goes_on else 0
      total = start + int(left) if left else None
      with archive.open("ab" if goes_on else "wb") as file:
        _receive(response, file, start, total, report)
  except urllib.error.HTTPError as error:
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      return  # nothing is left to fetch; the check decides whether what is there is good
    raise _unreachable(original, f"{error.code} {error.reason}", retry) from error
  except (http.client.HTTPException, OSError) as error:
    raise _unreachable(original, str(getattr(error, "reason", error)), retry) from error
  size = archive.stat().st_size
  if total is not None and size < total:
    raise ValueError(f"the download stopped at {size:,} of {total:,} bytes; run `{retry}` again to go on from there.")


def _receive(
    response: io.BufferedIOBase, file: io.BufferedIOBase, done: int, total: int | None, report: Report) -> None:
  reported = done
  while block := response.read(_BLOCK):
    file.write(block)
    done += len(block)
    if done - reported >= (total or 1 << 26) / 10:
      report(f"  {done:,} bytes" + (f" of {total:,}" if total else ""))
      reported = done


def _unreachable(original: Original, reason: str, retry: str) -> ValueError:
  return ValueError(
    f"{original.url} cannot be downloaded ({reason}); fetch {original.url.rsplit('/', 1)[-1]} on another machine and "
    f"run `{retry} --from FILE`, or run `{retry}` again later.")
