"""scripts/check_pins.py: what is pinned here has no fault, and faults are told."""

from __future__ import annotations

import importlib.metadata

import pytest

from scripts import check_pins

RANGES = {"jax": [">=0.1,<0.2"]}
JAX = importlib.metadata.version("jax")


def test_what_is_pinned_here_has_no_fault(monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["check_pins.py", "--files=requirements.txt"])
  assert check_pins.main() == 0, capsys.readouterr().out
  assert "pins: no fault" in capsys.readouterr().out


@pytest.mark.parametrize(("line", "fault"), [
  ("jax>=0.10.2", "is not one exact version"), ("jax", "is not one exact version"),
  (f"jax=={JAX}  # why", "is outside >=0.1,<0.2"), ("flax==0.0.1", "is pinned, and"),
  ("no-such-package==1.0", "is not installed")])
def test_faults_of_a_line_are_told(line, fault):
  assert any(fault in found for found in check_pins.faults_of(line, RANGES))


@pytest.mark.parametrize(("licence", "is_fault"), [
  ("Apache-2.0", False), ("BSD-3-Clause", False), ("GPL-3.0-or-later", True), ("Proprietary", True), (None, True)])
def test_licences_that_are_not_permissive_are_told(licence, is_fault):
  metadata = importlib.metadata.metadata("jax")
  del metadata["License-Expression"], metadata["License"], metadata["Classifier"]
  if licence:
    metadata["License-Expression"] = licence
  assert bool(list(check_pins._licence("toy", metadata))) == is_fault
