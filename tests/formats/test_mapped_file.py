"""A file mapped into memory: its bytes, what leaves the process, and a file that became shorter."""

from __future__ import annotations

import gc
import mmap
import os

import numpy as np
import pytest

from lattice_jax.formats import mapped_file
from lattice_jax.formats.mapped_file import MappedFile

SIZE = 3 * mmap.PAGESIZE + 100
BYTES = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "bytes"
  with path.open("wb") as file:
    file.write(BYTES.tobytes())
    file.flush()
    os.fsync(file.fileno())
  return path


def test_bytes_are_those_of_the_file_after_every_advice(path):
  file, span = MappedFile(path), (mmap.PAGESIZE - 3, SIZE - 1)
  for advise in (file.will_need, file.release, file.drop):
    advise(*span)
    np.testing.assert_array_equal(file.array(*span), BYTES[slice(*span)])
  out = np.zeros(span[1] - span[0], np.uint8)
  file.read_into(span[0], out)
  np.testing.assert_array_equal(out, BYTES[slice(*span)])


def test_advice_covers_whole_pages_and_stays_in_the_file(path, monkeypatch):
  file, told = MappedFile(path), []

  class Raw:
    def __len__(self):
      return SIZE

    def madvise(self, *given):
      told.append(given)

  file.raw = Raw()
  file.release(mmap.PAGESIZE + 5, 2 * mmap.PAGESIZE)
  file.will_need(0, SIZE + 9)
  assert told == [
    (mmap.MADV_DONTNEED, mmap.PAGESIZE, mmap.PAGESIZE), (mmap.MADV_WILLNEED, 0, SIZE)]
  told.clear()
  monkeypatch.setattr(mapped_file, "_CAN_ADVISE", False)
  monkeypatch.setattr(mapped_file, "_CAN_DROP", False)
  assert file.drop(0, SIZE) is False and not told


def test_pages_that_were_read_are_in_the_page_cache(path):
  file = MappedFile(path)
  file.array(0, SIZE).sum()
  assert file.cached_share(0, SIZE) in (None, 1.0)


def test_a_file_that_became_shorter_is_refused_before_it_is_read(path):
  file = MappedFile(path)
  file.check_whole()
  with pytest.raises(ValueError, match=rf"has {SIZE:,} bytes, and {SIZE + 1:,} are needed; get it again"):
    file.array(0, SIZE + 1)
  os.truncate(path, 9)
  with pytest.raises(ValueError, match=rf"was cut to 9 of {SIZE:,} bytes while it was being read; get it again"):
    file.check_whole()
  with pytest.raises(ValueError, match="ends at byte 9; get it again"):
    file.read_into(0, np.zeros(20, np.uint8))


def test_the_file_is_closed_with_its_last_reference(path):
  file = MappedFile(path)
  descriptor = file._descriptor
  del file
  gc.collect()
  with pytest.raises(OSError, match="Bad file descriptor"):
    os.fstat(descriptor)
