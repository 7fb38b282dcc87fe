"""scripts/soak.py: a short soak finds nothing, and what grows is told."""

from __future__ import annotations

import pytest

import lattice_jax.inference.generate  # noqa: F401 – soak imports it late, where frames lie deep
from scripts import soak

LOOK = {"memory": "vq", "tokens": 64, "resident_bytes": 10**8, "arrays": 20, "compiled": 5, "seconds": 1.0}


@pytest.mark.parametrize("memory", soak.MEMORIES)
def test_decoding_leaves_nothing_behind(memory):
  looks = list(soak.soak(memory, 160, 64))
  assert [look["tokens"] for look in looks] == [65, 129, 160]
  assert soak.faults_of(looks) == []


@pytest.mark.parametrize(("changes", "fault"), [
  ({"resident_bytes": 2 * 10**8}, "memory grew by 100.0 MB"), ({"arrays": 21}, "arrays went from 20 to 21"),
  ({"compiled": 6}, "compiled went from 5 to 6")])
def test_growth_is_told(changes, fault):
  assert soak.faults_of([LOOK, LOOK | changes, LOOK]) == [fault]
  assert soak.faults_of([LOOK, LOOK]) == []
