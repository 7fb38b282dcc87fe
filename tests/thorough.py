"""Parameters of tests that `scripts/test.sh --all` runs and `scripts/test.sh` leaves out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def further(*cases: object) -> Iterable[object]:
  """Cases beside those that every run has: parameters, or tuples of them."""
  return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough) for case in cases]
