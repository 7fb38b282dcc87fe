"""The dashboard is one page that stands alone, is well-formed at any time, and shows what the snapshot says."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from lattice_jax.inference.rollout.dashboard import render_dashboard
from lattice_jax.inference.rollout.history import History
from lattice_jax.inference.rollout.rollout import Rollout
from tests.inference.rollout.scenes import ask, drive, observation_of, observe, quick

VOID = {"meta", "br"}


class Page(HTMLParser):
  """Checks that every element is closed in its order, and collects the texts."""

  def __init__(self, html):
    super().__init__()
    self.open, self.texts, self.tags = [], [], []
    self.feed(html)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  @property
  def text(self):
    return " ".join(self.texts)


def begun(**changes):
  return Rollout(quick(**changes), facts={"control": "full", "treatment": "window:tokens=9", "inject": 0.0})


def worse(rollout):
  drive(rollout, 500, delta=0.4)


def fallen(rollout):
  number = 0
  while rollout.state.stage == "5":
    drive(rollout, 1, start=number)
    number += 1
  for number in range(400):
    observe(rollout, f"worse {number}", delta=0.4)


@pytest.mark.parametrize(("changes", "story", "texts"), [
  ({}, lambda rollout: None, ("running", "None yet", "no bounds yet")),
  ({}, lambda rollout: observe(rollout, "a"), ("running", "It is drawn from the second")),
  ({}, lambda rollout: drive(rollout, 5, error=True), ("5 : 0",)),
  ({}, lambda rollout: drive(rollout, 60), ("advance", "replay → shadow", "every gate said go; loss difference below")),
  ({}, worse, ("rolled back", "roll back", "loss difference: lower bound +0.1")),
  ({}, lambda rollout: observe(rollout, "a", finite=False), ("halt", "logits that are not finite")),
  ({"purpose": "required"}, lambda rollout: drive(rollout, 500), ("no purpose", "median latency, next token: lower")),
  ({"stages": ("replay",)}, lambda rollout: drive(rollout, 500, times=0.5), ("complete", "-50%")),
  ({"stages": ("5", "50")}, fallen, ("watching", "50 → 5")),
], ids=["empty", "one", "errors", "advance", "worse", "not finite", "no purpose", "complete", "watching"])
def test_it_shows_the_state_of_any_rollout(changes, story, texts):
  rollout = begun(**changes)
  story(rollout)
  snapshot = rollout.snapshot()
  html = render_dashboard(snapshot)
  page = Page(html)
  for text in texts:
    assert text in page.text, text
  assert ('http-equiv="refresh"' in html) == (not snapshot["is_ended"])
  assert not {"script", "link", "img", "iframe"} & set(page.tags) and "http://" not in html and "https://" not in html
  assert not re.search(r"\bnan\b|\binf\b|None<", html)
  assert "prefers-color-scheme:dark" in html


def test_the_snapshot_is_json_and_the_page_is_made_from_that_alone():
  rollout = begun()
  drive(rollout, 60)
  snapshot = rollout.snapshot()
  assert render_dashboard(json.loads(json.dumps(snapshot))) == render_dashboard(snapshot)


def test_names_cannot_bring_markup_into_the_page():
  evil = "<script>alert(1)</script>"
  html = render_dashboard(Rollout(quick(salt=evil), facts={"treatment": evil, evil: evil, "inject": 0.05}).snapshot())
  assert "<script" not in html and "&lt;script&gt;" in html and "injected regression of 0.05 nats" in html


def test_the_curve_stays_short_and_the_last_units_count():
  rollout, history = begun(min_units=10**6), History()
  for number in range(1000):
    history.see(observation_of(rollout.assign(f"unit {number}")), rollout._decider.gates[0], is_counted=True)
  curve = history.snapshot()["curve"]
  assert 200 <= len(curve) <= 400 and curve[-1]["unit"] > 990
  assert len({b["unit"] - a["unit"] for a, b in itertools.pairwise(curve)}) == 1


def test_latencies_are_those_of_the_last_units():
  rollout = begun()
  for number in range(20):
    observe(rollout, f"unit {number}", times=0.5)
  ask(rollout, "canary", treatment=False)
  snapshot = rollout.snapshot()
  control, treatment = (snapshot["arms"][arm] for arm in ("control", "treatment"))
  assert control["next_ms"]["count"] == treatment["units"] == 20 and treatment["longest_ms"] is None
  assert treatment["next_ms"]["p50"] == pytest.approx(control["next_ms"]["p50"] / 2)
  assert control["first_ms"]["p50"] < control["first_ms"]["p99"] <= control["first_ms"]["largest"]
  assert snapshot["canaries"] == {"asked": 1, "control": 1, "treatment": 0}
