"""A rollout by the requests of a server: it goes on and falls back by itself, and nothing is left out silently."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading

import httpx
import jax
import numpy as np
import pytest

from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation.rollout import live as live_module
from lattice_jax.evaluation.rollout.arms import Arm
from lattice_jax.evaluation.rollout.live import LiveRollout
from lattice_jax.evaluation.rollout.recorded import RecordedCanary, RecordedUnit, Recording
from lattice_jax.inference.rollout.assignment import CONTROL, TREATMENT, arm_of
from lattice_jax.inference.rollout.observation import Observation, Quality, Reading
from lattice_jax.inference.rollout.rollout import Rollout
from lattice_jax.inference.serving.front import Front
from lattice_jax.inference.serving.metrics import Metrics
from lattice_jax.inference.serving.request import CANCELLED, FAILED, LENGTH, NOT_FINITE
from lattice_jax.inference.serving.rollout_metrics import RolloutCollector
from lattice_jax.inference.serving.routing import REFUSED, Answered, Outcome, Route
from lattice_jax.inference.serving.server import Server, bind
from tests.evaluation.rollout.toy import MODEL, variables
from tests.inference.rollout.scenes import quick
from tests.inference.serving.small import CHUNK_LEN, MAX_LEN, SECONDS, ids_of, make_engine

# a handful of units decides a stage, and no latency of this machine does
CONFIG = quick(
  stages=("replay", "shadow", "50", "100"), alpha=0.9, alpha_go=0.9, min_units=2, min_served=4, slow_ratio=100.0)
NUMBERS = itertools.count()
NO_CANARY = Recording(0, lambda number: None, lambda number: None, 16, "f")


def recording():
  return Recording(
    count=None, longest=16, fingerprint="f",
    unit_at=lambda number: RecordedUnit(f"unit/{number}", ids_of(5, number), ids_of(3, 100 + number)),
    canary_at=lambda number: RecordedCanary(
      f"canary/{number}", ids_of(5, number), ids_of(2, 200 + number), np.ones(2, bool)))


def arms_of(scale=1.0):
  """The treatment's weights are those of the control times `scale`."""
  weights = {CONTROL: variables(), TREATMENT: jax.tree.map(lambda leaf: scale * leaf, variables())}
  return {name: Arm(MODEL, tree, max_len=MAX_LEN, chunk_len=CHUNK_LEN) for name, tree in weights.items()}


@contextlib.contextmanager
def serving(folder, scale, config=CONFIG):
  """(live, address, lines of the report)."""
  metrics, said, arms = Metrics(), [], arms_of(scale)
  engines = {name: make_engine(MODEL, arm.variables, meter=metrics.meter(name)) for name, arm in arms.items()}
  for engine in engines.values():
    engine.start()
  live = LiveRollout(
    Rollout(config, log=folder / "log.jsonl", facts={"scale": scale}), arms, recording(), scored_len=3, canary_every=1,
    room=64, dashboard=folder / "page.html", report=said.append)
  record, live.changed = live.rollout.record, threading.Condition()

  def noted(*given, **more):
    state = record(*given, **more)
    with live.changed:
      live.changed.notify_all()
    return state

  live.rollout.record = noted
  live.start()
  metrics.registry.register(RolloutCollector(live.snapshot))
  front = Front(engines, live, ByteTokenizer(), name="small", metrics=metrics, page=live.page)
  ports, is_ready = [], threading.Event()
  server = Server(front, grace=SECONDS, ready=lambda port: (ports.append(port), is_ready.set()))
  thread = threading.Thread(target=lambda: server.run([bind("127.0.0.1", 0)]))
  thread.start()
  assert is_ready.wait(SECONDS)
  try:
    yield live, f"http://127.0.0.1:{ports[0]}", said
  finally:
    server.should_exit = True
    thread.join(SECONDS)
    assert not thread.is_alive() and not live._thread.is_alive()


def ask(address, names):
  """(unit, arm that answered) of requests that are sent at once."""
  async def go():
    async with httpx.AsyncClient(base_url=address, timeout=SECONDS) as client:
      answers = await asyncio.gather(*(client.post(
        "/v1/completions", json={"prompt": "abc", "max_tokens": 4, "seed": 1}, headers={"X-Unit-Id": name})
        for name in names))
      return [(name, answer.headers["X-Arm"]) for name, answer in zip(names, answers, strict=True)]

  return asyncio.run(go())


def settle(live, names, visit):
  """Waits until all are recorded, or the stage is another."""
  def is_settled():
    state = live.rollout.state
    return state.is_ended or state.visit > visit or all(live.rollout.has(f"live/{name}") for name in names)

  with live.changed:
    assert live.changed.wait_for(is_settled, SECONDS)


def drive(live, address, until):
  """Sends units, four at once, until the rollout is there; returns who was answered by which arm."""
  answered = []
  for _ in range(60):
    state = live.rollout.state
    if until(state):
      return answered
    names = [f"user {number}" for number in itertools.islice(NUMBERS, 4)]
    found = ask(address, names)
    answered += found
    settle(live, names, state.visit)
  raise AssertionError(live.snapshot()["gates"])


def test_a_good_treatment_reaches_everybody_and_the_log_goes_on_after_a_crash(tmp_path):
  with serving(tmp_path, 1.0) as (live, address, said):
    answered = drive(live, address, lambda state: state.stage == "50")
    crashed = tmp_path / "crashed.jsonl"
    crashed.write_bytes((tmp_path / "log.jsonl").read_bytes() + b'{"kind": "un')
    answered += drive(live, address, lambda state: state.is_ended)
    assert {arm for _, arm in ask(address, ["a", "b", "c"])} == {TREATMENT}
    page, metrics = httpx.get(f"{address}/rollout"), httpx.get(f"{address}/metrics").text
  records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
  decisions = [record for record in records if record["kind"] == "decision"]
  assert [(one["verdict"], one["from"], one["to"]) for one in decisions] == [
    ("advance", "replay", "shadow"), ("advance", "shadow", "50"), ("advance", "50", "100"),
    ("complete", "100", "100")]
  units = [record for record in records if record["kind"] == "unit" and record["unit"].startswith("live/")]
  by_stage = {stage: {unit["arm"] for unit in units if unit["stage"] == stage} for stage in CONFIG.stages}
  assert by_stage == {"replay": set(), "shadow": {CONTROL}, "50": {CONTROL, TREATMENT}, "100": {TREATMENT}}
  assert {unit["unit"]: unit["arm"] for unit in units}.items() <= {(f"live/{name}", arm) for name, arm in answered}
  assert all(unit["arm"] == arm_of(CONFIG.salt, unit["unit"], 50) for unit in units if unit["stage"] == "50")
  assert all(set(unit["observation"]) == {"length", "control", "treatment", "quality"} for unit in units)
  assert page.headers["content-type"].startswith("text/html") and "complete" in page.text
  assert "complete" in (tmp_path / "page.html").read_text() and len(said) == 4 and said[-1].endswith("complete")
  for line in ('rollout_stage{stage="100"} 1.0', "rollout_treatment_share 1.0", "rollout_comparisons_waiting 0.0",
               'rollout_gate_answer{answer="go",gate="delta"} 1.0', 'rollout_status{status="complete"} 1.0',
               'rollout_gate_threshold{gate="delta"} 0.1', "compilations_total 0.0"):
    assert f"lattice_{line}" in metrics, line
  resumed = Rollout(CONFIG, log=crashed, facts={"scale": 1.0})
  assert resumed.state.stage == "50"
  assert [one["at"] for one in resumed.snapshot()["decisions"]] == [one["at"] for one in decisions[:2]]
  resumed.close()


def test_a_bad_treatment_is_rolled_back_and_the_control_answers_everybody(tmp_path):
  with serving(tmp_path, 2.0, quick(stages=("shadow", "50"), slow_ratio=100.0, kl_limit=0.05)) as (live, address, said):
    answered = drive(live, address, lambda state: state.is_ended)
    assert {arm for _, arm in answered} | {arm for _, arm in ask(address, ["a", "b", "c"])} == {CONTROL}
    units = live.rollout.state.units
    page = httpx.get(f"{address}/rollout").text
  assert live.rollout.state.status == "rolled back" and live.rollout.state.units == units
  assert "rolled back" in page and 'http-equiv="refresh"' not in page and "rolled back" in said[-1]


def outcome(ids=(5, 6, 7), finish=LENGTH, first_seconds=0.2):
  return Outcome(ids, finish, first_seconds, 0.01, 0.03, 640)


def answered_of(live, name, *, control=None, treatment=None):
  route = live.route(name)
  outcomes = {CONTROL: control, TREATMENT: treatment}
  return Answered(name, name, route, (1, 2, 3), {arm: found for arm, found in outcomes.items() if found})


def started(tmp_path, monkeypatch, stages=("shadow", "50")):
  """Without its thread; what would be read by both arms is looked up."""
  monkeypatch.setattr(live_module, "record_canary", lambda *given, **more: None)
  monkeypatch.setattr(live_module, "read_unit", lambda arms, prompt_T, answer_T, order: Observation(
    length=len(prompt_T), control=Reading(), treatment=Reading(), quality=Quality(0.01, 0.02, 1.0, len(answer_T))))
  rollout = Rollout(quick(stages=stages, min_units=1000), log=tmp_path / "log.jsonl")
  live = LiveRollout(
    rollout, {}, NO_CANARY, scored_len=2, canary_every=1, room=1, dashboard=tmp_path / "page.html")
  monkeypatch.setattr(live_module, "_TICK", 0.0)
  return live


def observations(tmp_path):
  lines = (tmp_path / "log.jsonl").read_text().splitlines()
  return {record["unit"]: record["observation"] for record in map(json.loads, lines) if record["kind"] == "unit"}


def test_what_finds_no_room_is_recorded_without_a_quality_and_counted(tmp_path, monkeypatch):
  live = started(tmp_path, monkeypatch)
  assert live.route("a").arm == CONTROL and live.route("a").shadows == (TREATMENT,)
  live.record(answered_of(live, "a", control=outcome(), treatment=outcome(first_seconds=0.1)))
  live.record(answered_of(live, "b", control=outcome(), treatment=outcome()))
  live.record(answered_of(live, "c", control=outcome()))
  live.record(answered_of(live, "d", control=outcome((), finish=REFUSED, first_seconds=None)))
  live.record(answered_of(live, "e", control=outcome((), CANCELLED, None), treatment=outcome((), CANCELLED, None)))
  assert live.snapshot()["traffic"] == {
    "waiting": 1, "shadows_dropped": 1, "comparisons_dropped": 1, "not_recorded": 0}
  live._step()
  live.record(answered_of(live, "a", control=outcome()))  # known: not compared again
  assert live.route("a").shadows == () and live.snapshot()["traffic"]["shadows_dropped"] == 1
  live.record(answered_of(live, "f", control=outcome(), treatment=outcome()))
  live.close()
  found = observations(tmp_path)
  assert found["live/b"] == {"length": 3, "control": reading(), "treatment": reading()} == found["live/f"]
  assert found["live/c"] == {"length": 3, "control": reading()}
  assert found["live/d"]["control"]["is_error"] and "first_ms" not in found["live/d"]["control"]
  assert "is_error" not in found["live/e"]["control"]
  assert live._counts["comparisons_dropped"] == 2 and "2 after that" in (tmp_path / "page.html").read_text()
  lines = (tmp_path / "log.jsonl").read_text()
  assert '"first_ms": 100.0' in lines and '"quality": {"delta_nll": 0.01' in lines and '"tokens": 2' in lines


def test_the_quality_is_measured_on_the_text_of_the_control_whoever_answered(tmp_path, monkeypatch):
  live = started(tmp_path, monkeypatch, stages=("50",))
  routes = []
  for name in "abcdef":
    answered = answered_of(live, name, control=outcome(), treatment=outcome((9,)))
    routes.append(answered.route.arm)
    live.record(answered)
    live._step()
  live.close()
  assert set(routes) == {CONTROL, TREATMENT}
  assert [found["quality"]["tokens"] for found in observations(tmp_path).values()] == [2] * 6


def reading():
  return {"first_ms": 200.0, "next_ms": 10.0, "longest_ms": 30.0, "cache_bytes": 640}


@pytest.mark.parametrize(
  ("finish", "status"), [(NOT_FINITE, "rolled back"), (FAILED, "running")], ids=["not_finite", "failed"])
def test_a_text_that_breaks_is_to_the_blame_of_its_arm(tmp_path, monkeypatch, finish, status):
  live = started(tmp_path, monkeypatch)
  live.record(answered_of(live, "a", control=outcome(), treatment=outcome(finish=finish)))
  live._step()
  errors = live.snapshot()["arms"]["treatment"]["errors"]
  assert live.rollout.state.status == status and errors == (finish == FAILED)
  live.close()


def test_while_the_log_cannot_be_written_the_control_answers_and_the_unit_is_tried_again(tmp_path, monkeypatch, caplog):
  live = started(tmp_path, monkeypatch)
  append, is_full = live.rollout._log.append, [True]

  def refuse(record, **options):
    if is_full[0]:
      raise ValueError("the log cannot be written.")
    append(record, **options)

  monkeypatch.setattr(live.rollout._log, "append", refuse)
  for name in "abb":
    live.record(answered_of(live, name, control=outcome()) if name == "a" else Answered(
      name, name, Route(CONTROL, note=live.rollout.assign(name)), (1,), {CONTROL: outcome()}))
  assert live.route("c") == Route(CONTROL) and live._counts["not_recorded"] == 2
  live._step()
  assert caplog.text.count("Until then the control answers everybody") == 1
  is_full[0] = False
  live._step()
  assert live.route("c").shadows == (TREATMENT,) and list(observations(tmp_path)) == ["live/a"]
  live.close()


def test_recorded_units_that_run_out_are_told(tmp_path):
  said = []
  few = Recording(1, recording().unit_at, recording().canary_at, 16, "f")
  live = LiveRollout(
    Rollout(quick(min_units=1000)), arms_of(), few, scored_len=2, canary_every=1, room=1,
    dashboard=tmp_path / "page.html", report=said.append)
  live._step()
  assert live.route("a") == Route(CONTROL) and live.rollout.state.units == 2
  line, = said
  assert line.startswith("rollout, unit 2: all 1 recorded units were read, and they do not decide the stage replay, in")
