"""The report on windows: every part has its place, what was not measured is named, and the page stands alone."""

from __future__ import annotations

import json
import re

import pytest

from lattice_jax.inspect.page import write_page
from lattice_jax.inspect.windows.plots import draw_report
from lattice_jax.inspect.windows.report import format_report

PLACES = (
  "The goal", "Which length saves what", "Time of a decode step", "Loss at equal bytes", "Loss by position",
  "Summaries of what is far, at equal bytes", "Windows of the heads")
FACTS = {
  "model": "tiny", "commands": {"loss": "the command"}, "machine": "a machine", "versions": "jax 1", "git_commit": None,
  "seconds": 3.0, "profile": "tiny.json", "context": 64}
WINDOWS = {"chosen": [[4, 0], [8, 4]], "uniform": [[8, 8], [8, 8]]}
BOUND = {"weight_bytes": 1000, "goal": 0.3, "lengths": [512, 1024], "batches": [{"batch": 1, "arms": [
  {"name": "full", "saved": [0.0, 0.0], "from": None}, {"name": "chosen", "saved": [0.125, 0.5], "from": 704}]}]}


def step(name, ms, **facts):
  return {"name": name, "cache_bytes": 640, "p50_ms": 2.0, "ms": ms, "predicted": 0.5, "saved_p50": 0.25,
          "saved_paired": 0.2} | facts


LATENCY = [{"length": 1024, "batch": 1, "weight_bytes": 1000, "arms": [
  step("full", [4.0] * 9 + [9.0], predicted=0.0, saved_p50=0.0, saved_paired=0.0),
  step("chosen", [*range(1, 101), 777.0])]}]


def way(name, **facts):
  return {"name": name, "windows": name, "far": "none", "bytes": 50, "nats": 2.5, "above_full": [0.01, 0.005, 0.015],
          "prefill_pairs": 0.25, "by_position": [[0.0, 0.0, 0.0], [0.0625, 0.05, 0.075]]} | facts


LOSS = {
  "scored": 32, "texts": 2, "seq_len": 64, "source": "books", "split": "test", "removal": [],
  "ranges": [[0, 32], [32, 64]],
  "arms": [way("full", bytes=100, above_full=[0, 0, 0], prefill_pairs=1.0), way("chosen"),
           way("prefill_windows", bytes=100)]}


def written(folder, **parts):
  """(chapters by heading, the page) of a report with these parts."""
  report = {"facts": FACTS, "windows": WINDOWS, **parts}
  text = format_report(json.loads(json.dumps(report)), draw_report(report, folder))
  write_page(folder / "windows.html", text)
  head, *chapters = re.split(r"(?m)^## ", text)
  assert "`the command`" in head and "{" not in text
  return dict(chapter.split("\n", 1) for chapter in chapters), (folder / "windows.html").read_text()


def cells(chapter, name):
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in chapter.splitlines()
          if line.startswith("|") and name in line]


def test_every_part_has_its_place_with_its_numbers_and_the_page_fetches_nothing(tmp_path):
  chapters, page = written(tmp_path, bound=BOUND, latency=LATENCY, loss=LOSS)
  assert tuple(chapters) == PLACES
  assert "chosen: **not met**" in chapters["The goal"] and "25% (50% predicted)" in chapters["The goal"]
  assert cells(chapters["Which length saves what"], "chosen") == [["1", "chosen", "12.5%", "50.0%", "704"]]
  assert cells(chapters["Which length saves what"], "full")[0][-1] == "never"
  row, = cells(chapters["Time of a decode step"], "chosen")
  assert row[3:] == ["51.0", "96.0", "100.0", "777.0", "50.0%", "25.0%", "20.0%"]
  row, = cells(chapters["Loss at equal bytes"], "| prefill_windows")
  assert row[1:4] == ["100", "100.0%", "25.0%"] and "prompt of 32 tokens and" in chapters["Loss at equal bytes"]
  assert "its loss says nothing" not in chapters["Loss at equal bytes"]
  assert cells(chapters["Loss by position"], "chosen")[0][2] == "+0.0625 (+0.0500 … +0.0750)"
  assert cells(chapters["Loss by position"], "windows")[0] == ["windows", "0–31", "32–63"]
  pictures = re.findall(r"!\[.*\]\((.*)\)", "".join(chapters.values()))
  assert sorted(pictures) == ["crossover.png", "loss.png", "loss_position.png", "windows.png"]
  assert page.count('<img src="data:image/png;base64,') == 4 and page.count("<section>") == len(PLACES)
  assert all(f"<h2>{place}</h2>" in page for place in PLACES)
  bare = re.sub(r"data:image/png;base64,[\w+/=]+", "", page)
  assert set(re.findall(r"(?:src|href)=.?", bare)) == {'src="'} and bare.count('src=""') == 4
  assert not re.search(r"https?:|//|url\(|@import|<script|<link|<iframe", bare)
  assert "prefers-color-scheme:dark" in page


@pytest.mark.parametrize("parts", [{}, {"bound": BOUND}, {"loss": {
  name: LOSS[name] for name in LOSS if name != "ranges"} | {"arms": LOSS["arms"][:2]}}], ids=["none", "bound", "old"])
def test_what_was_not_measured_is_named_and_not_made_up(tmp_path, parts):
  chapters, page = written(tmp_path, **parts)
  assert tuple(chapters) == PLACES and all(f"<h2>{place}</h2>" in page for place in PLACES)
  missing = {place for place, chapter in chapters.items() if "This part was not measured yet" in chapter}
  there = {"Windows of the heads"} | ({"Which length saves what"} if "bound" in parts else set()) | (
    {"Loss at equal bytes"} if "loss" in parts else set())
  assert missing == set(PLACES) - there
  if "loss" in parts:
    assert "prefill_windows was not measured yet; `--parts=loss` does that." in chapters["Loss at equal bytes"]


@pytest.mark.parametrize("pairs", [1.0, None])
def test_windows_that_hide_nothing_of_a_prompt_are_named(tmp_path, pairs):
  arms = [*LOSS["arms"][:2], way("prefill_windows", prefill_pairs=pairs)]
  chapters, _ = written(tmp_path, loss=LOSS | {"arms": arms})
  assert "hide nothing of a prompt of 32 tokens" in chapters["Loss at equal bytes"]
