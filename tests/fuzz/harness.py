"""What a fuzzer does with a reader: a small whole folder, of which one file is replaced, and what may come of it.

An input is one byte, which says which of the reader's files it replaces, and the content of that file. Allowed are that
the folder is read, or ValueError itself with a sentence; UnicodeDecodeError and the like are ValueErrors that nobody
wrote for users.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of processor time for one input
MEMORY_BYTES = 1 << 30  # by which the process may grow through one input
_LONGEST = 2000  # characters of a sentence


@dataclass(frozen=True)
class Reader:
  """A reader of files that others made.

  make: writes a small whole folder, and returns the names of the files that are replaced.
  read: reads the folder, and uses all of what it holds.
  modules: whose branches count as coverage.
  limit: bytes of the longest input.
  """

  name: str
  make: Callable[[Path], tuple[str, ...]]
  read: Callable[[Path], Any]
  modules: tuple[str, ...]
  limit: int = 1 << 14


class Trial:
  """A reader in a folder of its own."""

  def __init__(self, reader: Reader, folder: Path):
    """Raises ValueError if the reader refuses the whole folder."""
    self.reader, self._folder = reader, folder / "whole"
    self._folder.mkdir(parents=True)
    self.files = reader.make(self._folder)
    self._copy = shutil.copytree(self._folder, folder / "copy")
    self._whole = {name: (self._folder / name).read_bytes() for name in self.files}
    reader.read(self._folder)

  def seeds(self) -> list[bytes]:
    """The inputs that leave the folder as it is."""
    return [bytes([number]) + raw for number, raw in enumerate(self._whole.values())]

  def fault(self, data: bytes) -> str | None:
    """What is wrong with how the input is answered, or None. Other exceptions than ValueError come through."""
    if not data:
      return None
    name = self.files[data[0] % len(self.files)]
    path = self._folder / name
    begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _replace(path, data[1:])
    try:
      self.reader.read(self._folder)
    except ValueError as error:
      if type(error) is not ValueError:
        raise
      return fault_of_sentence(str(error))
    finally:
      if path.exists():
        _replace(path, self._whole[name])
      else:  # it set the file aside
        shutil.rmtree(self._folder)
        shutil.copytree(self._copy, self._folder)
    used, grown = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if used > SECONDS:
      return f"it takes {used:.1f} seconds"
    return f"it takes {grown:,} kB" if grown * 1024 > MEMORY_BYTES else None


def fault_of_sentence(text: str) -> str | None:
  """Why this is no sentence for a user, or None."""
  odd = [word for word in ("Traceback", " object at 0x", "Error(") if word in text]
  if odd or "\n" in text.strip() or not 10 < len(text) < _LONGEST:
    return f"no sentence: {text[:_LONGEST]!r}"
  return None


def _replace(path: Path, raw: bytes) -> None:
  """In a new file, because readers remember files by their number and their time."""
  path.unlink()
  path.write_bytes(raw)
