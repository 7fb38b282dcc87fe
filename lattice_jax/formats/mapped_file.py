"""A file mapped into memory: its bytes as arrays, and what the system is told about when they are needed."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

_CAN_ADVISE = hasattr(mmap, "MADV_DONTNEED")
_CAN_DROP = hasattr(os, "posix_fadvise")


class MappedFile:
  """raw: the whole file; its pages are read on demand and not copied."""

  def __init__(self, path: Path):
    """Raises OSError if the file cannot be opened, ValueError if it is empty."""
    self.path = path
    self._file = path.open("rb")
    self.raw = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

  def array(self, start: int, stop: int) -> np.ndarray:
    """Bytes [start, stop) as uint8, not copied. Raises ValueError if the file ends before."""
    if stop > len(self.raw):
      raise ValueError(f"{self.path} has {len(self.raw):,} bytes, and {stop:,} are needed; get it again.")
    return np.frombuffer(self.raw, np.uint8, stop - start, start)

  def check_whole(self) -> None:
    """Raises ValueError if the file has become shorter: to read beyond its end would kill the process."""
    size = os.fstat(self._file.fileno()).st_size
    if size < len(self.raw):
      raise ValueError(
        f"{self.path} was cut to {size:,} of {len(self.raw):,} bytes while it was being read; get it again.")

  def will_need(self, start: int, stop: int) -> None:
    """Has the system begin to read these bytes into its page cache."""
    self._advise("MADV_WILLNEED", start, stop)

  def release(self, start: int, stop: int) -> None:
    """Takes these bytes out of the process, not out of the page cache; they can be read again."""
    self._advise("MADV_DONTNEED", start, stop)

  def drop(self, start: int, stop: int) -> bool:
    """Takes these bytes out of the page cache too, so that the next read is one of the disk; whether that can be asked.

    Pages that another process has mapped stay where they are.
    """
    self.release(start, stop)
    if _CAN_DROP:
      os.posix_fadvise(self._file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)
    return _CAN_DROP

  def _advise(self, advice: str, start: int, stop: int) -> None:
    if _CAN_ADVISE:
      first = start // mmap.PAGESIZE * mmap.PAGESIZE
      self.raw.madvise(getattr(mmap, advice), first, min(stop, len(self.raw)) - first)
