"""A rollout over recorded units: every unit once, whenever it is stopped, and an injected regression is noticed."""

from __future__ import annotations

import functools
import itertools
import json

import numpy as np
import pytest

from lattice_jax.evaluation.rollout import run as run_module
from lattice_jax.evaluation.rollout.recorded import RecordedCanary, RecordedUnit, Recording
from lattice_jax.evaluation.rollout.run import run_recorded
from lattice_jax.inference.rollout.rollout import Rollout
from tests.evaluation.rollout.toy import TOKENS_T, arm
from tests.inference.rollout.scenes import quick


@functools.cache
def likely_texts():
  """Three prompts with what the model itself would go on with, so that an even draw instead makes it worse."""
  texts = np.random.default_rng(1).integers(0, 256, (3, 16)).astype(np.int32)
  for text_T in texts:
    session = arm().begin(text_T[:12])
    for place in range(12, 16):
      text_T[place] = int(session.state.logits_BA.argmax())
      session.step(text_T[place:place + 1])
  return texts


def recording(count=None):
  texts = np.tile(likely_texts(), (200, 1))
  return Recording(
    count=count, longest=16, fingerprint="f",
    unit_at=lambda number: RecordedUnit(f"unit/{number}", texts[number, :12], texts[number, 12:]),
    canary_at=lambda number: RecordedCanary(f"canary/{number}", TOKENS_T[:12], TOKENS_T[12:14], np.ones(2, bool)))


def go(path, units, *, inject=0.0, count=None, dashboard=None, canary_every=1, **changes):
  """(state, lines of the report, records of the log)."""
  rollout, said, ticks = Rollout(quick(**changes), log=path), [], itertools.count()
  arms = {"control": arm(), "treatment": arm(inject=inject)}
  state = run_recorded(
    rollout, arms, recording(count), units=units, canary_every=canary_every, dashboard=dashboard, report=said.append,
    clock=lambda: float(next(ticks)))
  rollout.close()
  return state, said, [json.loads(line) for line in path.read_bytes().splitlines()]


def names(records):
  return [record["unit"] for record in records if record["kind"] == "unit"]


def test_every_unit_is_read_once_however_often_the_command_is_stopped(tmp_path):
  whole = names(go(tmp_path / "whole.jsonl", 8, min_units=1000)[2])
  path = tmp_path / "parts.jsonl"
  for units in (3, 3, 8):
    _, _, records = go(path, units, min_units=1000)
    path.write_bytes(path.read_bytes()[:-5])  # killed while it wrote its last line
  state, _, records = go(path, 8, min_units=1000)
  assert names(records) == whole and state.units == 16
  assert whole[:4] == ["canary/0", "unit/0", "canary/1", "unit/1"]


def test_an_injected_regression_ends_the_rollout_and_the_page_says_so(tmp_path):
  page = tmp_path / "page.html"
  state, said, records = go(tmp_path / "log.jsonl", 500, inject=0.5, dashboard=page)
  assert (state.status, state.stage, state.percent) == ("rolled back", "replay", 0)
  assert records[-1]["cause"] == "delta" and said[-1].endswith("roll back because of delta")
  assert "rolled back" in page.read_text() and 'http-equiv="refresh"' not in page.read_text()


def test_a_served_unit_is_read_by_one_arm_unless_it_is_sampled(tmp_path):
  _, _, records = go(tmp_path / "log.jsonl", 40, stages=("50",), quality_rate=0.3, min_units=1000, canary_every=0)
  read = [(record["arm"], record["is_compared"], set(record["observation"]) - {"length"}) for record in records[1:]]
  assert {(arm, compared) for arm, compared, _ in read} == {
    ("control", True), ("control", False), ("treatment", True), ("treatment", False)}
  for served, is_compared, parts in read:
    assert parts == ({"control", "treatment", "quality"} if is_compared else {served})


def test_it_reads_no_more_units_than_there_are(tmp_path, monkeypatch):
  monkeypatch.setattr(run_module, "_REPORT_EVERY", 2)
  state, said, _ = go(tmp_path / "log.jsonl", 500, count=3, canary_every=2)
  assert state.units == 3 + 2
  assert said[0].startswith("unit 2: running, stage replay, the treatment serves 0 % of the units; waits for delta,")


@pytest.mark.parametrize("is_first", [True, False])
def test_neither_arm_is_always_first(tmp_path, monkeypatch, is_first):
  orders, read = [], run_module.read_unit
  monkeypatch.setattr(
    run_module, "read_unit", lambda *args, order=None: orders.append(order) or read(*args, **(
      {} if order is None else {"order": order})))
  go(tmp_path / "log.jsonl", 30, min_units=1000)
  assert 6 < sum((order[0] == "control") == is_first for order in orders[1:]) < 24
