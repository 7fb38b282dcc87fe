"""The bench of nonlinear recurrences: every case is exact by its own measure, and rounds are counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lattice_jax.bench import lattice, recurrence, recurrence_ttt, rounds
from lattice_jax.bench.harness import GIGA, measure
from lattice_jax.bench.recurrence_table import write_summary
from tests.thorough import further

TINY = {
  "gru": recurrence.Shape("gru", heads=1, width=3), "block_gru": recurrence.Shape("block_gru", heads=2, width=2),
  "ttt": recurrence.Shape("ttt", heads=1, width=4)}


@pytest.mark.parametrize(("head", "mode", "names"), [
  ("gru", "fwd+bwd", {"definition", "scan", "newton 4", "rounds 32"}),
  ("ttt", "fwd", {"scan", "rounds 16", "substitution 16"}), *further(
    ("block_gru", "fwd+bwd", {"definition", "scan", "newton 4", "rounds 32"}),
    ("ttt", "fwd+bwd", {"scan", "substitution 16"}))])
def test_all_cases_are_exact(monkeypatch, head, mode, names):
  monkeypatch.setitem(recurrence.SHAPES, head, TINY[head])
  monkeypatch.setattr(recurrence, "CHUNKS", (4,))
  results = measure(list(recurrence.cases(head, 32, mode, 2)), rounds=1, max_bytes=GIGA)
  assert {result.case.name for result in results} == names
  # A norm of four numbers is near to having none, so gradients of the scan itself are off by 1e-5.
  limit = 1e-4 if (head, mode) == ("ttt", "fwd+bwd") else 2e-6
  for result in results:
    assert result.error < limit, result.case.name
    assert result.case.group["head"] == head
    is_solved = result.case.name.split()[0] in ("newton", "rounds")
    assert (result.record().get("solver_rounds", 0) > 1) == is_solved, result.case.name


def test_lattice_is_timed_as_scan_and_as_rounds(monkeypatch):
  monkeypatch.setitem(lattice.SHAPES, "m64", lattice.Shape(heads=1, slots=3, value_dim=3))
  found = {case.name: case for case in recurrence.cases("lattice", 32, "fwd", 1)}
  assert set(found) == {"scan", "definition", "rounds 16"}
  assert 1 < found["rounds 16"].count()["solver_rounds"] <= 15


def test_rounds_of_ttt_end_where_the_scan_is():
  arrays = recurrence_ttt.make_arrays(2, 4, 1, 48)
  out, last, number, change = recurrence_ttt.by_rounds(*arrays)
  for got, want in zip((out, last), recurrence_ttt.by_token(*arrays), strict=True):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  assert number.shape == (3,) and (change <= recurrence_ttt.TOLERANCE).any() | (number == 16).all()


def test_the_summary_has_the_newest_of_a_case_and_how_many_times_the_scan_it_took(tmp_path):
  def record(case, median, **more):
    return {"head": "gru8", "mode": "fwd", "T": 1024, "case": case, "q20": median, "median": median, "q80": median,
            "temp_bytes": 5_000_000, "compile_seconds": 1.25, "error": 1e-7, **more}

  lines = [record("newton 32", 9.0), record("scan", 0.002),
           record("newton 32", 0.005, solver_rounds=4.25, scanned=0.5)]
  big = {"head": "gru8", "mode": "fwd", "T": 2048, "case": "definition", "temp_bytes": 9e9, "compile_seconds": 1.0}
  (tmp_path / "bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, big]))
  write_summary(tmp_path)
  text = (tmp_path / "table.md").read_text(encoding="utf-8")
  assert "| 1,024 | newton 32 | 5.00 | 5.00–5.00 | 2.50 | 4.2 | 50 % | 1.0e-07 | 5 | 1.2 |" in text
  assert "| gru8, fwd | newton | 2.50 |  |" in text
  assert "9,000.00" not in text and "| 2,048 | definition | does not fit |" in text


def small(head):
  """A problem of `rounds` at a size for tests."""
  return {"gru": lambda: rounds.problems()["gru64"], "lattice": lambda: rounds.problems()["lattice, encoding"]}[head]()


@pytest.mark.parametrize("head", ["gru", *further("lattice")])
def test_newton_needs_fewer_rounds_than_tokens_and_plain_rounds_almost_as_many(monkeypatch, head):
  monkeypatch.setitem(recurrence.SHAPES, "gru64", TINY["gru"])
  monkeypatch.setitem(lattice.SHAPES, "m64", lattice.Shape(heads=1, slots=3, value_dim=3))
  monkeypatch.setattr(rounds, "WARM", 4)
  found = {record["method"]: record for record in rounds.count_rounds(small(head), 12)}
  newton = found["newton, diagonal" if head == "gru" else "newton, all slots"]
  assert 1 < newton["rounds"] < 6 and newton["error"] <= rounds.CLOSE
  if head == "gru":
    assert found["rounds"]["rounds"] > 8
    assert newton["work"] == pytest.approx(2 + 3 / 6)
  else:
    assert found["quasi-newton, slots apart"]["rounds"] == newton["rounds"]
  table = rounds.format_rounds([record | {"problem": head, "chunk": 12} for record in found.values()])
  assert f"| {head} | {newton['method']} | {newton['rounds']} |" in table
