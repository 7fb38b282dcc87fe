"""Downloads the books of PG-19 from their public bucket over plain https."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.data.prepare.download import require_space, unreachable
from lattice_jax.data.progress import ProgressLines, Report, as_gigabytes
from lattice_jax.data.published import BookSet
from lattice_jax.files import replace_file

STORAGE_URL = "https://storage.googleapis.com"
RETRY_PAUSE = 1.0  # seconds before the second attempt, twice that before the third
_ATTEMPTS = 3
_THREADS = 16
_TIMEOUT = 30
_WANTED = re.compile(r"metadata\.csv|(train|validation|test)/\d+\.txt")


@dataclass(frozen=True)
class RemoteFile:
  name: str
  size: int
  md5: str  # hexadecimal


def fetch_books(book_set: BookSet, folder: Path, report: Report, *, retry: str, extra_bytes_ratio: float) -> None:
  """Downloads the files of the bucket that are missing from `folder`, or that differ there, into it.

  extra_bytes_ratio: disk space that later steps need for each byte of text.

  Raises ValueError if the bucket cannot be reached, or the disk is too small.
  """
  report(f"listing {STORAGE_URL}/{book_set.bucket}")
  try:
    remote = [file for prefix in (*book_set.books, "metadata.csv") for file in _list(book_set.bucket, prefix)]
  except (http.client.HTTPException, OSError) as error:
    raise unreachable(f"{STORAGE_URL}/{book_set.bucket}", error, retry) from error
  missing = [file for file in remote if not _is_here(file, folder)]
  size = sum(file.size for file in missing)
  require_space(
    folder, size + int(extra_bytes_ratio * sum(file.size for file in remote)), f"preparing {book_set.name}")
  report(f"downloading {len(missing):,} of {len(remote):,} files, {as_gigabytes(size)}, to {folder}")
  for split in book_set.books:
    (folder / split).mkdir(parents=True, exist_ok=True)
  _fetch_all(book_set, missing, folder, report, retry)


def _list(bucket: str, prefix: str) -> Iterator[RemoteFile]:
  page = ""
  while True:
    query = urllib.parse.urlencode({
      "prefix": prefix, "fields": "nextPageToken,items(name,size,md5Hash)", **({"pageToken": page} if page else {})})
    listing: dict[str, Any] = json.loads(_read(f"{STORAGE_URL}/storage/v1/b/{bucket}/o?{query}"))
    for item in listing["items"]:
      if _WANTED.fullmatch(item["name"]):
        yield RemoteFile(item["name"], int(item["size"]), base64.b64decode(item["md5Hash"]).hex())
    if "nextPageToken" not in listing:
      return
    page = listing["nextPageToken"]


def _is_here(file: RemoteFile, folder: Path) -> bool:
  path = folder / file.name
  return path.is_file() and path.stat().st_size == file.size and _md5(path.read_bytes()) == file.md5


def _fetch_all(book_set: BookSet, missing: list[RemoteFile], folder: Path, report: Report, retry: str) -> None:
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  waiting = {pool.submit(_fetch, book_set.bucket, file, folder): file for file in missing}
  progress = ProgressLines(report, "received", len(missing), "files")
  try:
    for done, future in enumerate(concurrent.futures.as_completed(waiting), start=1):
      try:
        future.result()
      except (http.client.HTTPException, OSError) as error:
        raise unreachable(_url(book_set.bucket, waiting[future]), error, retry) from error
      progress.at(done)
  finally:
    pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, waits only for downloads that have begun


def _fetch(bucket: str, file: RemoteFile, folder: Path) -> None:
  url = _url(bucket, file)
  raw = _read(url)
  if _md5(raw) != file.md5:
    raise ValueError(
      f"{url} has {len(raw):,} bytes with md5 {_md5(raw)}, not {file.size:,} with {file.md5}; run the command again.")
  replace_file(folder / file.name, raw)


def _url(bucket: str, file: RemoteFile) -> str:
  return f"{STORAGE_URL}/{bucket}/{urllib.parse.quote(file.name)}"


def _read(url: str) -> bytes:
  """The whole answer. Retries after temporary faults, which some of thousands of requests meet."""
  for attempt in range(1, _ATTEMPTS):
    try:
      return _read_once(url)
    except urllib.error.HTTPError as error:
      if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise
    except (http.client.HTTPException, OSError):
      pass
    time.sleep(RETRY_PAUSE * attempt)
  return _read_once(url)


def _read_once(url: str) -> bytes:
  try:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
      return response.read()
  except urllib.error.HTTPError as error:
    error.close()  # it holds the connection
    raise


def _md5(raw: bytes) -> str:
  return hashlib.md5(raw, usedforsecurity=False).hexdigest()
