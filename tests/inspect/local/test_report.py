"""The report on local attention, from a stored run to its files."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from lattice_jax.inspect.local import arms, context, stream, texts
from lattice_jax.inspect.local.arms import MATCHING, MEAN, MOMENTS, SINKS, WINDOW
from lattice_jax.inspect.local.context import Sizes
from lattice_jax.inspect.local.errors import _difference, _ranges
from lattice_jax.inspect.local.run import PARTS, write_report
from lattice_jax.inspect.local.texts import load_model
from lattice_jax.inspect.page import write_page
from scripts import local as script
from tests.inspect.local import tiny

SIZES = Sizes(texts=2, tuning_texts=1, needle_texts=1, seq_len=tiny.LENGTH, budgets=(24, 112), seed=0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  return load_model(pretrained=None, workdir=tiny.write_run(tmp_path_factory.mktemp("run")))


def write(loaded, out, parts=tuple(PARTS), **sizes):
  return write_report(
    loaded, out, dataclasses.replace(SIZES, **sizes), split="test", parts=parts, command="the command",
    report=lambda line: None)


def few(monkeypatch, names, settings=1):
  """Fewer programs to compile."""
  real = arms.candidates
  monkeypatch.setattr(context, "NAMES", names)
  monkeypatch.setattr(context, "candidates", lambda *given: real(*given)[:settings])


@pytest.mark.thorough
def test_the_report_has_every_part_and_its_pictures(loaded, tmp_path, monkeypatch):
  names = (WINDOW, MEAN, MOMENTS, MATCHING)
  few(monkeypatch, names)
  data, page, html = write(loaded, tmp_path)
  content, text, shown = json.loads(data.read_text()), page.read_text(), html.read_text()
  assert list(content) == ["facts", *PARTS] == ["facts", *script.PARTS]
  small, large = content["errors"]["budgets"]
  assert {arm["name"] for arm in large["arms"]} == set(names)
  assert {arm["name"] for arm in small["arms"]} == {WINDOW, MEAN, MOMENTS}
  for budget in (small, large):
    errors = [arm["error"] for arm in budget["arms"]]
    assert errors == sorted(errors) and all(0 < error < 2 for error in errors)
    assert budget["ranges"] == [[budget["budget"], 160]]
    for arm in budget["arms"]:
      assert arm["bytes"] <= budget["budget"] * 128 < arm["bytes"] + 128
      assert len(arm["by_layer"]) == 2 and arm["interval"][0] <= arm["error"] <= arm["interval"][1]
      assert arm["by_position"] == [pytest.approx(arm["error"])]
      if arm["name"] == WINDOW:
        assert (arm["without_summary"], arm["window"]) == (arm["error"], budget["budget"] - SINKS)
  assert [(each["better"], each["worse"]) for each in large["order"] if each["is_claim"]] == [
    (MATCHING, MOMENTS), (MOMENTS, MEAN), (MEAN, WINDOW)]
  needles = content["needle"]["budgets"][1]["arms"]
  assert [arm["kept"] for arm in needles] == [0, 0, 0, 0]
  pictures = re.findall(r"!\[.*\]\((.*)\)", text)
  assert sorted(pictures) == sorted(path.name for path in tmp_path.glob("*.png")) and len(pictures) == 4
  assert "`the command`" in text and "{" not in text
  tables = re.findall(r"(?m)(?:^\|.*\n)+", text)
  assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
  assert shown.count("<img src=\"data:image/png;base64,") == 4 and shown.count("<table>") == len(tables) == 6
  assert not re.search(r"(src|href)=.?(http|//)", shown) and "prefers-color-scheme:dark" in shown


def test_a_part_alone_needs_no_other(loaded, tmp_path, monkeypatch):
  few(monkeypatch, (WINDOW, MEAN))
  data, page, _ = write(loaded, tmp_path, parts=("needle",), budgets=(24,))
  assert list(json.loads(data.read_text())) == ["facts", "needle"]
  assert [path.name for path in tmp_path.glob("*.png")] == ["needle.png"] and "Equal bytes" not in page.read_text()


def test_settings_are_those_with_the_least_error_on_other_texts(loaded, monkeypatch):
  few(monkeypatch, (WINDOW, MEAN), 2)
  said, off = [], {}
  given = context.Context(loaded, "test", dataclasses.replace(SIZES, budgets=(60,)), said.append)
  chosen = given.settings[60]
  assert given.settings is given.settings
  assert len(said) == 1 and said[0].startswith("60 tokens: window: –; mean: Mean(")
  (inputs,) = texts.read_layers(loaded, texts.read_texts(loaded, "validation", tiny.LENGTH, 1)[0], every=3)
  for arm in arms.candidates(MEAN, 60, given.heads)[:2]:
    compared = stream.compare(arm, arm.window(60, given.heads), inputs, stream.exact_outputs(inputs))
    off[arm] = stream.relative_errors([compared], stream.positions(inputs) >= 60).mean()
  assert len(off) == 2 and chosen[MEAN] == min(off, key=off.get) and chosen[WINDOW] == arms.Arm(WINDOW)


@pytest.mark.parametrize(("sizes", "message"), [
  ({"seq_len": 168}, "--seq_len=168 is more than the 167 tokens that tiny was made for; use a smaller --seq_len"),
  ({"seq_len": 164}, "--seq_len=164 must be a multiple of 8"),
  ({"budgets": (24, 160)}, "--budgets=160 tokens hold a text of --seq_len=160 whole; use smaller"),
  ({"budgets": (11,)}, "--budgets=11 tokens are fewer than sinks and a window need; use larger")],
  ids=["long", "uneven", "whole", "none"])
def test_sizes_that_leave_nothing_to_compare_are_refused(loaded, tmp_path, sizes, message):
  with pytest.raises(ValueError, match=message):
    write(dataclasses.replace(loaded, context_len=167), tmp_path / "out", **sizes)
  assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_see_everything_is_refused(tmp_path):
  attention = dataclasses.replace(tiny.CONFIG.model.attention, window=32)
  config = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, attention=attention))
  with pytest.raises(ValueError, match=r"model.pattern=attention with model.attention.window=32 does not see all"):
    load_model(pretrained=None, workdir=tiny.write_run(tmp_path / "run", config))


def test_a_difference_holds_if_its_interval_lies_above_zero():
  worse, better = np.array([0.5, 0.6, 0.7])[:, None, None], np.array([0.4, 0.55, 0.5])[:, None, None]
  up, down = (_difference(*pair, {"a": better, "b": worse}) for pair in (("a", "b"), ("b", "a")))
  assert up["more"] == pytest.approx(0.35 / 3) and up["holds"] and up["share_of_heads"] == 1
  assert 0.049 < up["interval"][0] < up["more"] < up["interval"][1] < 0.201
  assert not down["holds"] and down["share_of_heads"] == 0


def test_ranges_of_positions_double():
  assert _ranges(128, 1536) == [(128, 256), (256, 512), (512, 1024), (1024, 1536)]
  assert _ranges(300, 400) == [(300, 400)]


def test_a_page_holds_its_pictures_and_shows_text_as_text(tmp_path):
  (tmp_path / "a.png").write_bytes(b"\x89PNG")
  table = "| a | b |\n|---|---:|\n| 1 | 2 |"
  write_page(tmp_path / "page.html", f"# One <b>\n\n<script>1</script> `x` and *y*\n\n{table}\n\n![t](a.png)\n")
  page = (tmp_path / "page.html").read_text()
  assert "<title>One &lt;b&gt;</title>" in page and "<script>" not in page and "<code>x</code>" in page
  assert 'src="data:image/png;base64,iVBORw==' in page and '<td style="text-align:right">2</td>' in page
