"""Generated documents of awkward lengths, for tests and for runs that need no data."""

from __future__ import annotations

import numpy as np

from lattice_jax.data.hashing import hashed_integers
from lattice_jax.data.source import SPLITS

_LENGTHS = (129, 1, 1000, 33, 7, 513, 2, 64, 1, 300, 1777, 63)
_ROUNDS = {"train": 32, "validation": 4, "test": 4}


def synthetic_documents(split: str) -> list[bytes]:
  """Documents of awkward lengths, each of which repeats a phrase of 3 to 18 letters with one letter in 20 wrong.

  Remembering the phrase saves most of the bits. Splits share phrases only by chance.
  """
  return [
    _noisy_copies(length, SPLITS.index(split), round_, place)
    for round_ in range(_ROUNDS[split]) for place, length in enumerate(_LENGTHS)]


def _noisy_copies(length: int, *key: int) -> bytes:
  letters = (hashed_integers(18, *key, 0) % np.uint64(26)).astype(np.uint8)
  period = 3 + int(hashed_integers(1, *key, 1)[0] % np.uint64(16))
  clean = np.resize(letters[:period], length)
  draws = hashed_integers(length, *key, 2)
  wrong = (draws % np.uint64(26)).astype(np.uint8)
  is_wrong = draws >> np.uint64(32) < np.uint64(2**32 // 20)
  return (np.where(is_wrong, wrong, clean) + np.uint8(ord("a"))).tobytes()
