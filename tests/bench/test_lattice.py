"""The bench of Lattice: exact forms and plain loops are exact by its own measure, approximate ones are not."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lattice_jax.bench import lattice
from lattice_jax.bench.harness import GIGA, measure
from lattice_jax.bench.records import format_table
from lattice_jax.memories.lattice.op import Form

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


def test_errors_are_those_of_outputs_slots_and_gradients_against_float64(monkeypatch):
  devices = jax.device_count()
  monkeypatch.setitem(lattice.SHAPES, "tiny", lattice.Shape(heads=devices, slots=3, value_dim=3))
  monkeypatch.setattr(lattice, "FORMS", {"scan": Form(), "additive": Form("additive", 4)})
  monkeypatch.setattr(lattice, "_CHECKPOINT_EVERY", 8)
  results = measure(list(lattice.cases("tiny", 16, "fwd+bwd", 1)), rounds=1, max_bytes=GIGA)
  errors = {result.case.name: result.error for result in results}
  spread = {f"{name}, heads over {devices} devices" for name in ("scan", lattice.BLOCKWISE)}
  assert devices > 1 and set(errors) == {"scan", "additive", lattice.RETURNING, *lattice.BASELINES, *spread}
  assert all((errors[name] is None) == (lattice.BLOCKWISE in name) for name in errors)
  additive = errors.pop("additive")
  assert max(error for error in errors.values() if error is not None) < 1e-5 < additive
  header, _, *rows = format_table(results, lattice.BASELINES).splitlines()
  column = header.split("|").index(" error ")
  assert float(rows[0].split("|")[column]) == pytest.approx(errors["scan"], rel=0.5)
  assert lattice.BLOCKWISE in rows[-1].split("|")[1] and not rows[-1].split("|")[column].strip()
  assert results[0].record()["error"] == errors["scan"] and "error" not in results[-1].record()


def test_inputs_are_correlated_and_of_length_one():
  q, k, v, step, _ = lattice.make_inputs(lattice.Shape(heads=1, slots=8, value_dim=8, max_step=0.5), 2, 64)
  for x in (q, k, v):
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
    assert (x[:, 1:] * x[:, :-1]).sum(-1).mean() > 0.5
  assert step.min() >= 0.25 and step.max() <= 0.5


@pytest.mark.parametrize(("argument", "sentence"), [
  ("--head=shga", "--head=shga is none of lattice; use one of m64, m16."),
  ("--lengths=64,12x", "--lengths=64,12x must be values with commas between them, each of which must be a"),
  ("--rounds=0", "--rounds=0 must be positive."),
  ("--modes=back", "--modes=back names 'back'; known are fwd, fwd+bwd, decode."),
  ("--modes=fwd,decode", "--modes=decode is none of lattice's: fwd, fwd+bwd."),
])
def test_a_wrong_argument_is_refused(monkeypatch, tmp_path, argument, sentence):
  monkeypatch.setattr(sys, "argv", ["bench.py", "lattice", argument, f"--out={tmp_path}"])
  with pytest.raises(ValueError, match=re.escape(sentence)):
    runpy.run_path(str(SCRIPT))["main"]()
