"""How files are written: locked by one process, replaced as a whole, appended to line by line."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lattice_jax.processes import warn
from lattice_jax.shown import first_line

Record = dict[str, Any]  # a line of a JSON Lines file


@contextlib.contextmanager
def lock_folder(folder: Path, taken: str) -> Iterator[None]:
  """Makes the folder and locks it until the block ends; the system releases the lock however the process ends.

  Raises:
    ValueError: another process holds the lock; the message is `taken`.
    OSError: the folder or the lock file cannot be made.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(taken) from error
    yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A file to write that replaces `path` in one step if the block succeeds, and is removed if it fails."""
  partial = path.with_name(path.name + ".part")
  try:
    yield partial
    partial.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise


def replace_file(path: Path, content: str | bytes) -> None:
  """Writes the whole file or leaves the old one as it is."""
  with replacing(path) as partial:
    partial.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_json(path: Path, content: Any) -> None:
  """As `replace_file`, indented."""
  replace_file(path, json.dumps(content, indent=2) + "\n")


def read_object(path: Path) -> Record:
  """The object in a JSON file that one of our programs wrote. Raises ValueError if it is damaged."""
  try:
    content = json.loads(path.read_bytes().decode())
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} is not readable JSON ({first_line(error, 100)}); remove it, or write it again.") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds no JSON object; remove it, or write it again.")
  return content


def to_jsonl(records: Iterable[Any]) -> str:
  """One line of JSON for each record."""
  return "".join(json.dumps(record) + "\n" for record in records)


def append_jsonl(path: Path, records: Iterable[Record]) -> None:
  """Appends one line for each record; makes the file and its folder if they are missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    file.write(to_jsonl(records))


def read_jsonl(path: Path, is_whole: Callable[[Record], bool] = lambda record: True) -> list[Record]:
  """The records of a file that holds one on each line; an empty list where there is no file.

  A last line without a line break was being written when its process was killed; it is ignored. A damaged line (not a
  JSON object, or not `is_whole`) is reported and ignored. Raises ValueError where the file exists but cannot be read.
  """
  try:
    *lines, _ = path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); move it away, or restore it.") from error
  records = []
  for number, line in enumerate(lines, start=1):
    record = _parse(line)
    if isinstance(record, dict) and is_whole(record):
      records.append(record)
    else:
      warn(f"line {number} of {path} is damaged and left out: {line[:60].decode(errors='replace')!r}")
  return records


def _parse(line: bytes) -> Any:
  try:
    return json.loads(line.decode())
  except (ValueError, RecursionError):
    return None
