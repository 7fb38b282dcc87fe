"""Figures in prose are those of the results they came from."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml

from scripts import check_figures

ENTRIES = [
  (page, entry) for page, entries in yaml.safe_load(
    (check_figures.ROOT / check_figures.REGISTRY).read_text(encoding="utf-8")).items() for entry in entries]
ROW = {"says": "a loss of {row[loss]:.2f}", "from": {"row": ["table.jsonl", {"name": "a"}]}}


@pytest.mark.parametrize(("page", "entry"), ENTRIES, ids=str)
def test_a_page_says_what_its_results_say(page, entry):
  assert not check_figures.mistake(check_figures.ROOT, page, entry)


@pytest.fixture
def folder(tmp_path):
  rows = [{"name": "a", "loss": -1.234}, {"name": "b", "loss": 2.0}, {"name": "b", "loss": 3.0}]
  (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "report.json").write_text(json.dumps({"parts": [{"name": "x", "values": [0.125, 0.5]}]}))
  (tmp_path / "page.md").write_text("It has a loss\nof −1.23, and 12.5%.\n")
  return pathlib.Path(tmp_path)


def test_a_figure_is_found_across_lines_and_with_another_minus(folder):
  assert check_figures.mistake(folder, "page.md", ROW) == ""
  share = {"says": "and {share:.1%}.", "from": {"share": ["report.json", "parts", {"name": "x"}, "values", 1]}}
  assert "does not say 'and 50.0%.'" in check_figures.mistake(folder, "page.md", share)


@pytest.mark.parametrize(("change", "sentence"), [
  ({"says": "a loss of {row[loss]:.3f}"}, "page.md does not say 'a loss of -1.234', as its results do."),
  ({"says": "a loss"}, "has no figure"),
  ({"says": "a loss of {row[los]:.2f}"}, "'los'"),
  ({"from": {"row": ["table.jsonl", {"name": "b"}]}}, "2 entries of table.jsonl have {'name': 'b'}; name one"),
  ({"from": {"row": ["table.jsonl", {"name": "c"}]}}, "0 entries of table.jsonl"),
  ({"from": {"row": ["none.jsonl", {"name": "a"}]}}, "none.jsonl cannot be read"),
], ids=["value", "text", "field", "two", "none", "file"])
def test_a_wrong_entry_is_named(folder, change, sentence):
  assert sentence in check_figures.mistake(folder, "page.md", ROW | change)
