"""A file mapped into memory: its bytes as arrays, and what the system is told about when they are needed."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

_CAN_ADVISE = hasattr(mmap, "MADV_DONTNEED")
_CAN_DROP = hasattr(os, "posix_fadvise")


class MappedFile:
  """raw: the whole file; its pages are read on demand and not copied."""

  def __init__(self, path: Path):
    """Raises OSError if the file cannot be opened, ValueError if it is empty."""
    self.path = path
    self._descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, self._descriptor)
    self.raw = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

  def array(self, start: int, stop: int) -> np.ndarray:
    """Bytes [start, stop) as uint8, not copied. Raises ValueError if the file ends before."""
    if stop > len(self.raw):
      raise ValueError(f"{self.path} has {len(self.raw):,} bytes, and {stop:,} are needed; get it again.")
    return np.frombuffer(self.raw, np.uint8, stop - start, start)

  def check_whole(self) -> None:
    """Raises ValueError if the file has become shorter: to read beyond its end would kill the process."""
    size = os.fstat(self._descriptor).st_size
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
      os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)
    return _CAN_DROP

  def read_into(self, start: int, out: np.ndarray) -> None:
    """Copies the bytes from `start` on into `out` by a plain call of the system, past the mapping."""
    view = memoryview(out)
    while view:
      count = os.preadv(self._descriptor, [view], start)
      if not count:
        raise ValueError(f"{self.path} ends at byte {start:,}; get it again.")
      view, start = view[count:], start + count

  def cached_share(self, start: int, stop: int) -> float | None:
    """Which part of the pages of these bytes is in the page cache; None where the system does not tell."""
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    flags = np.zeros(-(-(stop - first) // mmap.PAGESIZE), np.uint8)
    address = np.frombuffer(self.raw, np.uint8).ctypes.data + first
    if mincore is None or mincore(*map(ctypes.c_void_p, (address, stop - first, flags.ctypes.data))):
      return None
    return float((flags & 1).mean())

  def _advise(self, advice: str, start: int, stop: int) -> None:
    if _CAN_ADVISE:
      first = start // mmap.PAGESIZE * mmap.PAGESIZE
      self.raw.madvise(getattr(mmap, advice), first, min(stop, len(self.raw)) - first)
