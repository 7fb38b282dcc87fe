"""Freed memory goes back to the system, and training begins again once, on huge pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lattice_jax import allocator

ROOT = Path(__file__).resolve().parents[1]
glibc = pytest.mark.skipif(not allocator._has_glibc(), reason="needs Linux with glibc, whose allocator this is about")


def resident_mb():
  with open("/proc/self/statm", encoding="ascii") as file:
    return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@glibc
def test_what_is_freed_goes_back():
  pieces = [bytes(40_000) for _ in range(4_000)]  # too small for a mapping of their own
  last = bytes(40_000)  # keeps the top of the heap in use
  before = resident_mb()
  del pieces
  allocator.give_back()
  assert before - resident_mb() > 100
  assert last


PROGRAM = """
import os, sys
from lattice_jax import allocator
from pathlib import Path
allocator._HUGE_PAGES = Path(sys.argv[1])
print("begins", os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], flush=True)
allocator.use_huge_pages()
print("goes on", flush=True)
"""
INSIDE = """
import runpy, sys
sys.argv = sys.argv[1:]
print("another", flush=True)
sys.argv[-1] = "d"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@glibc
@pytest.mark.parametrize(("pages", "own", "is_inside", "expected"), [
  ("always [madvise] never", None, False, [
    "begins None ['--a', 'b c']", "begins glibc.malloc.hugetlb=1 ['--a', 'b c']", "goes on"]),
  ("[always] madvise never", None, False, ["begins None ['--a', 'b c']", "goes on"]),
  ("always [madvise] never", None, True, ["another", "begins None ['--a', 'd']", "goes on"]),
  ("always [madvise] never", "", False, ["begins  ['--a', 'b c']", "goes on"]),
])
def test_a_program_begins_again_once_on_huge_pages(tmp_path, pages, own, is_inside, expected):
  for name, text in (("program.py", PROGRAM), ("inside.py", INSIDE)):
    (tmp_path / name).write_text(text)
  (tmp_path / "enabled").write_text(pages)
  environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  environment |= {} if own is None else {"GLIBC_TUNABLES": own}
  done = subprocess.run(
    [sys.executable, *(["inside.py"] if is_inside else []), "program.py", "enabled", "--a", "b c"],
    env=environment | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, check=True)
  assert done.stdout.splitlines() == expected
