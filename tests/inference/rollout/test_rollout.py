"""A rollout is what its log says: it resumes from every prefix, and refuses a log that is not its own."""

from __future__ import annotations

import itertools
import json
import os
import threading

import pytest

from lattice_jax.inference.rollout.log import DecisionLog
from lattice_jax.inference.rollout.observation import Canary, Observation, Quality, Reading
from lattice_jax.inference.rollout.rollout import Rollout
from tests.inference.rollout.scenes import ask, drive, observation_of, observe, quick

FACTS = {"model": "toy", "treatment": "window"}
# one canary and one unit decide a stage, so that a log with every kind of decision has a dozen lines
TINY = quick(stages=("replay", "shadow", "50"), min_units=1, min_served=8, alpha_go=0.9, alpha=0.9)


def story(rollout, start=0):
  """What a short rollout sees, in order; `start` events are left out. Ends in a halt."""
  names = ["a", "b", "c", "d", "e", "f", "g", "h"]
  events = []
  for number, name in enumerate(names):
    events.append(lambda name=name, at=2.0 * number: ask(rollout, f"canary {name}", at=at))
    events.append(lambda name=name, at=2.0 * number + 1: observe(rollout, name, at=at, kl=0.9 if name > "e" else 0.01))
  for event in events[start:]:
    event()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
  """(the lines of a log, the snapshot at its end)."""
  path = tmp_path_factory.mktemp("told") / "log.jsonl"
  rollout = Rollout(TINY, log=path, facts=FACTS)
  story(rollout)
  rollout.close()
  return path.read_bytes().splitlines(keepends=True), rollout.snapshot()


def test_the_log_says_who_decided_what_and_why(told):
  lines, snapshot = told
  records = [json.loads(line) for line in lines]
  assert records[0]["kind"] == "start" and records[0]["facts"] == FACTS
  assert records[0]["fields"]["stages"] == ["replay", "shadow", "50"]
  decisions = [record for record in records if record["kind"] == "decision"]
  assert [(one["verdict"], one["from"], one["to"], one["percent"], one["cause"]) for one in decisions] == [
    ("advance", "replay", "shadow", 0.0, ""), ("advance", "shadow", "50", 50.0, ""),
    ("halt", "50", "50", 0.0, "kl")]
  for one in decisions:
    assert one["config"] == records[0]["config"] == snapshot["key"] and len(one["gates"]) == 7
    assert {"estimate", "lower", "upper", "threshold", "units", "answer"} <= set(one["gates"][0])
  assert decisions[0]["stood"]["units"] >= 1 and decisions[0]["gates"][0]["answer"] == "go"
  assert snapshot["status"] == "rolled back"


def test_it_resumes_from_every_prefix_of_its_log(told, tmp_path):
  """Wherever the process was killed, what follows brings the same log, byte for byte, and the same snapshot."""
  lines, snapshot = told
  num_units = list(itertools.accumulate(json.loads(line)["kind"] == "unit" for line in lines))
  for length in range(len(lines) + 1):
    path = tmp_path / f"{length}.jsonl"
    path.write_bytes(b"".join(lines[:length]))
    rollout = Rollout(TINY, log=path, facts=FACTS)
    assert rollout.state.units == (num_units[length - 1] if length else 0)
    story(rollout, start=rollout.state.units)
    rollout.close()
    assert path.read_bytes() == b"".join(lines), length
    assert rollout.snapshot() == snapshot


@pytest.mark.parametrize("cut", [1, 40, -1], ids=["start", "middle", "line end"])
def test_a_torn_last_line_is_left_out_with_a_warning(told, tmp_path, cut, capsys):
  lines, snapshot = told
  for torn in (0, 3, len(lines) - 1):
    path = tmp_path / f"{torn}.jsonl"
    path.write_bytes(b"".join(lines[:torn]) + lines[torn][:cut])
    rollout = Rollout(TINY, log=path, facts=FACTS)
    assert "was cut off when its process was killed, and is left out" in capsys.readouterr().err
    story(rollout, start=rollout.state.units)
    rollout.close()
    assert path.read_bytes() == b"".join(lines) and rollout.snapshot() == snapshot


@pytest.mark.parametrize(("change", "sentence"), [
  (lambda lines: lines[:2] + lines[3:], "line 3 of {path} was changed, or does not follow line 2; restore the file"),
  (lambda lines: [*lines[:2], lines[2].replace(b'"at": 1.0', b'"at": 9.0'), *lines[3:]], "line 3 of {path} was"),
  (lambda lines: [lines[0], b"\n", *lines[1:]], "line 2 of {path} was changed"),
  (lambda lines: [*lines, b"\xff\n"], "of {path} was changed"),
  (lambda lines: lines[1:], "line 1 of {path} was changed"),
], ids=["missing", "changed", "empty", "not text", "no start"])
def test_a_changed_log_is_refused(told, tmp_path, change, sentence):
  path = tmp_path / "log.jsonl"
  path.write_bytes(b"".join(change(told[0])))
  before = path.read_bytes()
  with pytest.raises(ValueError) as refused:
    Rollout(TINY, log=path, facts=FACTS)
  assert sentence.format(path=path) in str(refused.value) and path.read_bytes() == before


def rewrite(path, records):
  """A log with these records, each of which vouches for the one before."""
  log = DecisionLog(path)
  for record in records:
    log.append(record)
  log.close()


@pytest.mark.parametrize(("change", "sentence"), [
  (lambda records: [record for record in records if record["kind"] != "decision"], "lacks the decision after unit"),
  (lambda records: [record | ({"verdict": "roll back"} if record["kind"] == "decision" else {}) for record in records],
   "led to «roll back», which its units do not: it was written by another version"),
  (lambda records: [{**records[0], "format": "lattice_jax rollout 0"}], "is no log of a rollout, or one of another"),
  (lambda records: [{"kind": "unit"}], "is no log of a rollout, or one of another"),
], ids=["lacks", "other verdict", "format", "no start"])
def test_a_log_of_another_version_is_refused(told, tmp_path, change, sentence):
  path = tmp_path / "log.jsonl"
  records = [{name: value for name, value in json.loads(line).items() if name != "chain"} for line in told[0]]
  rewrite(path, change(records))
  with pytest.raises(ValueError, match=sentence):
    Rollout(TINY, log=path, facts=FACTS)


@pytest.mark.parametrize(("config", "facts", "sentence"), [
  (quick(delta_margin=0.2), FACTS, "is of a rollout with delta_margin=0.1, not 0.2; give the same"),
  (quick(stages=("replay", "5")), FACTS, r"is of a rollout with stages=\['replay', 'shadow', '5', '50'\], not"),
  (quick(), {"model": "toy", "treatment": "full"}, "is of a rollout with treatment='window', not 'full'"),
  (quick(), {"model": "toy"}, "is of a rollout with treatment='window', not None"),
  (quick(), FACTS | {"inject": 1}, "is of a rollout with inject=None, not 1"),
], ids=["field", "stages", "fact", "no fact", "more facts"])
def test_the_log_of_another_rollout_is_refused(tmp_path, config, facts, sentence):
  path = tmp_path / "log.jsonl"
  Rollout(quick(), log=path, facts=FACTS).close()
  with pytest.raises(ValueError, match=sentence):
    Rollout(config, log=path, facts=facts)


def test_one_process_holds_a_log_at_a_time(tmp_path):
  rollout = Rollout(quick(), log=tmp_path / "log.jsonl")
  with pytest.raises(ValueError, match=r"another process is writing the log"):
    Rollout(quick(), log=tmp_path / "log.jsonl")
  rollout.close()
  Rollout(quick(), log=tmp_path / "log.jsonl").close()
  with pytest.raises(ValueError, match=r"the log .* cannot be opened"):
    Rollout(quick(), log=tmp_path)


def test_a_unit_that_cannot_be_written_is_not_taken_in(tmp_path, monkeypatch):
  path, write = tmp_path / "log.jsonl", os.write
  rollout = Rollout(TINY, log=path)
  ask(rollout, "canary")
  whole = path.read_bytes()

  def half(file, line):
    if file != rollout._log._file or limit[0] > 0:
      limit[0] -= 1
      return write(file, line)
    return write(file, line[:7])

  monkeypatch.setattr(os, "write", half)
  limit = [0]
  with pytest.raises(ValueError, match=r"cannot be written .no space left.; free space, then record the unit again"):
    observe(rollout, "unit")
  assert path.read_bytes() == whole and rollout.state.units == 1 and not rollout.has("unit")
  limit = [1]  # the unit can be written, the decision to which it leads cannot
  with pytest.raises(ValueError, match="cannot be written"):
    for number in range(50):
      limit[0] = 1
      observe(rollout, f"unit {number}")
  limit[0] = 10**6
  units = rollout.state.units
  observe(rollout, "next")
  rollout.close()
  assert rollout.state.units == units + 1
  assert [json.loads(line)["kind"] for line in path.read_bytes().splitlines()][-2:] == ["decision", "unit"]
  Rollout(TINY, log=path).close()


def test_a_unit_counts_once_and_only_in_the_stage_in_which_it_was_assigned():
  rollout = Rollout(quick())
  early = rollout.assign("early")
  drive(rollout, 5)
  assert rollout.snapshot()["needs"]["units"] == 5
  observe(rollout, "unit 0")
  assert rollout.snapshot()["needs"]["units"] == 5 and rollout.has("unit 0") and not rollout.has("early")
  number = 5
  while rollout.state.stage == "replay":
    drive(rollout, 1, start=number)
    number += 1
  rollout.record(early, observation_of(early), at=0.0)
  assert rollout.snapshot()["needs"]["units"] == 0 and rollout.has("early")
  rollout.record(early, observation_of(early, finite=False), at=0.0)
  assert rollout.state.status == "rolled back", "guardrails look at late and repeated units too"


def test_a_served_unit_counts_by_the_arm_that_served_it():
  """At 5 % both arms may read a unit, which decides its quality, and its times count for the serving arm alone."""
  rollout = Rollout(quick(stages=("5",), purpose="required"))
  gates = {gate.rule.name: gate for gate in rollout._decider.gates}
  arms = {}
  for number in range(200):
    assignment = rollout.assign(f"unit {number}")
    arms.setdefault(assignment.arm, assignment)
  for assignment in arms.values():
    rollout.record(assignment, observation_of(assignment), at=0.0)
  assert gates["errors"].units_R2[0].tolist() == [1, 1] and gates["delta"].seen_R[0] == 2


def test_logits_that_are_not_finite_are_an_error_of_either_arm():
  rollout = Rollout(quick())
  observation = Observation(control=Reading(is_finite=False), treatment=Reading())
  state = rollout.record(rollout.assign("a"), observation, at=0.0)
  errors, = (gate for gate in rollout._decider.gates if gate.rule.name == "errors")
  assert errors.errors_R2.tolist() == [[1, 0]] and not state.is_ended


def test_an_ended_rollout_serves_the_control_and_takes_nothing_in(tmp_path):
  path = tmp_path / "log.jsonl"
  rollout = Rollout(quick(), log=path)
  assert observe(rollout, "bad", finite=False).is_ended
  before = path.read_bytes()
  assignment = rollout.assign("next")
  assert (assignment.arm, assignment.is_compared) == ("control", False)
  assert observe(rollout, "next").units == 1 and path.read_bytes() == before


@pytest.mark.parametrize(("make", "sentence"), [
  (lambda: Reading(first_ms=float("nan")), "first_ms=nan of a reading must be positive and finite, or None"),
  (lambda: Reading(next_ms=0.0), "next_ms=0.0 of a reading must be positive"),
  (lambda: Quality(float("inf"), 0.0, 1.0, 1), "delta_nll=inf is no such figure of a unit; where an arm's logits are"),
  (lambda: Quality(0.0, 0.0, 1.5, 1), "agreement=1.5 is no such figure"),
  (lambda: Quality(0.0, 0.0, 1.0, 0), "tokens=0; it needs at least one"),
  (lambda: Observation(), "an observation needs the reading of an arm, or a canary"),
  (lambda: Observation(control=Reading(), quality=Quality(0.0, 0.0, 1.0, 1)), "a quality compares both arms"),
  (lambda: Observation(control=Reading(), canary=Canary(True, True)), "a canary is observed by itself"),
], ids=["nan", "zero", "inf", "agreement", "tokens", "nothing", "one arm", "canary"])
def test_what_cannot_be_an_observation_is_refused(make, sentence):
  with pytest.raises(ValueError) as refused:
    make()
  assert sentence in str(refused.value)


def test_the_reading_of_the_arm_that_served_must_be_there():
  rollout = Rollout(quick())
  with pytest.raises(ValueError, match="unit 'a' was assigned to the control, and its reading is missing"):
    rollout.record(rollout.assign("a"), Observation(treatment=Reading()), at=0.0)
  assert rollout.state.units == 0


def test_an_observation_is_what_its_line_says():
  for observation in (
    Observation(length=7, control=Reading(first_ms=1.5), treatment=Reading(is_error=True)),
    Observation(length=7, control=Reading(1.0, 2.0, 3.0, 4), treatment=Reading(is_finite=False)),
    Observation(control=Reading(), treatment=Reading(), quality=Quality(-0.25, 0.125, 0.5, 3)),
    Observation(canary=Canary(True, False))):
    assert Observation.from_record(json.loads(json.dumps(observation.to_record()))) == observation


def test_several_threads_may_record(tmp_path):
  rollout = Rollout(quick(min_units=1000), log=tmp_path / "log.jsonl")
  threads = [threading.Thread(target=lambda start=start: drive(rollout, 10, start=start)) for start in range(0, 40, 10)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  snapshot = rollout.snapshot()
  rollout.close()
  assert snapshot["units"] == 80 and snapshot["needs"]["units"] == 40
  assert Rollout(quick(min_units=1000), log=tmp_path / "log.jsonl").snapshot() == snapshot
