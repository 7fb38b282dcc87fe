"""What the C library does with memory: returns what is free to the system, and takes training's from huge pages."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def give_back() -> None:
  """Returns what loading and compiling have freed, which glibc keeps otherwise; elsewhere there is nothing to do."""
  if _has_glibc():
    ctypes.CDLL(None).malloc_trim(0)


def use_huge_pages() -> None:
  """Starts this program again with large arrays on huge pages, where the kernel gives them to those who ask.

  XLA's CPU backend takes a step's arrays anew each time, and the kernel clears them page by page: of small pages, a
  fifth of a step of configs/quickstart.py. glibc reads the wish before a program begins, so it must begin again; call
  this before anything is imported that takes time. A GLIBC_TUNABLES of the user stays as it is, and
  so does a program that another one runs inside its own process.
  """
  is_itself = sys.orig_argv[-len(sys.argv):] == sys.argv
  if is_itself and _has_glibc() and "GLIBC_TUNABLES" not in os.environ and "[madvise]" in _read(_HUGE_PAGES):
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _has_glibc() -> bool:
  try:
    return bool(os.confstr("CS_GNU_LIBC_VERSION"))
  except (AttributeError, OSError, ValueError):
    return False


def _read(path: Path) -> str:
  try:
    return path.read_text()
  except OSError:
    return ""
