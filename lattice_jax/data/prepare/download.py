"""Downloads that resume where they stopped, and checks of the disk space that they need."""

from __future__ import annotations

import http.client
import io
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from lattice_jax.data.progress import ProgressLines, Report, as_gigabytes
from lattice_jax.data.published import Original, check_original, sha256_of_file

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a response


def fetch_original(original: Original, folder: Path, report: Report, *, retry: str) -> Path:
  """The published file in `folder`. A file with its name is complete and was verified after the download.

  retry: the command that resumes an interrupted download.

  Raises ValueError if it cannot be downloaded, or is not the published file.
  """
  target = folder / original.name
  if target.is_file() and target.stat().st_size == original.size:
    return target
  folder.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(target.name + ".part")
  download(original.url, partial, report, retry=retry)
  try:
    verify_original(original, partial, report)
  except ValueError:
    partial.unlink()  # complete but wrong, so there is nothing to resume
    raise
  return partial.replace(target)


def verify_original(original: Original, path: Path, report: Report) -> None:
  """Raises ValueError if the file at `path` is not the published one; the cheap check comes first."""
  size = path.stat().st_size
  if size == original.size:
    report(f"verifying {path} ({as_gigabytes(size)})")
  check_original(original, size, sha256_of_file(path) if size == original.size else "", path)


def download(url: str, partial: Path, report: Report, *, retry: str) -> None:
  """Downloads `url` to `partial`, resuming an earlier attempt."""
  have = partial.stat().st_size if partial.exists() else 0
  request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
  report(f"downloading {url}" + (f" from byte {have:,} on" if have else ""))
  try:
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
      goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
      left = response.headers["Content-Length"]
      start = have if goes_on else 0
      total = start + int(left) if left else None
      with partial.open("ab" if goes_on else "wb") as file:
        _receive(response, file, start, total, report)
  except urllib.error.HTTPError as error:
    error.close()  # it holds the connection
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      return  # nothing is left to download; the check of the file follows
    raise unreachable(url, error, retry) from error
  except (http.client.HTTPException, OSError) as error:
    raise unreachable(url, error, retry) from error
  size = partial.stat().st_size
  if total is not None and size < total:
    raise ValueError(f"the download stopped at {size:,} of {total:,} bytes; run `{retry}` again to resume it.")


def _receive(
    response: io.BufferedIOBase, file: io.BufferedIOBase, done: int, total: int | None, report: Report) -> None:
  progress = ProgressLines(report, "received", total or 1 << 40, "bytes")
  while block := response.read(_BLOCK):
    file.write(block)
    done += len(block)
    progress.at(done)


def unreachable(url: str, error: Exception, retry: str) -> ValueError:
  """The error for a network that does not reach `url`."""
  if isinstance(error, urllib.error.HTTPError):
    reason = f"{error.code} {error.reason}"
  else:
    reason = str(getattr(error, "reason", error))
  return ValueError(
    f"{url} cannot be downloaded ({reason}); fetch it on another machine and run `{retry} --from PATH`, or run "
    f"`{retry}` again later.")


def require_space(folder: Path, needed: int, purpose: str) -> None:
  """Raises ValueError if the disk of `folder` has less than `needed` bytes free; called before anything is written."""
  existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
  free = shutil.disk_usage(existing).free
  if free < needed:
    raise ValueError(
      f"{purpose} needs {as_gigabytes(needed)} at {folder}, and {as_gigabytes(free)} are free; make room, or give "
      "--path a folder on a larger disk.")
