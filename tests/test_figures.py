"""Figures in prose are those of the results they came from."""

from __future__ import annotations

import json
import pathlib

import pytest

from lattice_jax.aot import results_page
from lattice_jax.inspect.anchors.report import format_report as format_anchors
from lattice_jax.inspect.local.run import PARTS
from lattice_jax.inspect.windows.report import format_report as format_windows
from scripts import check_figures
from scripts.figures.labels import mislabelled
from scripts.figures.prose import figures_of, places_of
from scripts.figures.values import read_tables, value_of

RESULTS = check_figures.ROOT / "docs" / "results"
ENTRIES, LISTS = check_figures.read_registry(check_figures.ROOT / check_figures.REGISTRY)
WHOLE_SETS = ("enwik8", "pg19", "imagenet64")
ROW = {"says": "a loss of {row[loss]:.2f}", "from": {"row": ["table.jsonl", {"name": "a"}]}}
TABLE = "| run | loss |\n|---|---:|\n| one | 2.9852 ± 0.0013 |\n| two | **12.5 %** |\n"


@pytest.mark.parametrize("page", sorted({*ENTRIES, *LISTS["complete"]}))
def test_a_page_says_what_its_results_say(page):
  entries = ENTRIES[page] if page in ENTRIES else []
  assert not check_figures.mistakes_of(check_figures.ROOT, page, entries, page in LISTS["complete"])


def test_every_page_is_complete_or_written_by_a_command():
  assert not check_figures.unlisted(check_figures.ROOT, LISTS)
  assert not {*LISTS["complete"]} & {*LISTS["written"]}
  for page, command in LISTS["written"].items():
    assert (check_figures.ROOT / page).is_file() and (check_figures.ROOT / command).is_file()


def test_no_result_of_a_sample_has_the_name_of_a_whole_data_set():
  assert not check_figures.wrong_labels(check_figures.ROOT)
  for folder in RESULTS.iterdir():
    if any(name in folder.name for name in WHOLE_SETS) and "sample" not in folder.name:
      assert not [path for path in folder.rglob("*.json*") if '_sample"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("text", "is_wrong"), [
  ("Trained on PG-19 it has\n2.1 bits per byte.", True), ("| enwik8, test | 1.934 bits per byte |", True),
  ("On enwiki_sample, of enwik8's source,\n2.1 bits per byte.", False),
  ("The paper has 0.99 bits per byte on enwik8.", False),
  ("ImageNet64 has 12,288 tokens an image.", False), ("PG-19.\n\n2.1 bits per byte of the novels.", False),
], ids=["text", "row", "sample", "paper", "size", "apart"])
def test_a_label_without_sample_is_found(text, is_wrong):
  assert bool(mislabelled(text)) == is_wrong


def without_pictures(text: str) -> list[str]:
  return [line for line in text.splitlines() if line and not line.startswith("![")]


@pytest.mark.parametrize(("folder", "format_report"), [
  ("anchors", format_anchors), ("local_windows", format_windows), ("local_windows_half", format_windows),
  ("local_windows_long", format_windows)])
def test_a_written_page_is_that_of_its_report(folder, format_report):
  report = json.loads((RESULTS / folder / "report.json").read_text(encoding="utf-8"))
  drawn = dict.fromkeys(("loss", "cache", "recall", "demonstrations", "layers", "picture"), pathlib.Path("x.png"))
  page = (RESULTS / folder / "README.md").read_text(encoding="utf-8")
  assert without_pictures(page) == without_pictures(format_report(report, drawn))


def test_the_tables_of_local_attention_are_those_of_its_report():
  report = json.loads((RESULTS / "local_errors" / "report.json").read_text(encoding="utf-8"))
  drawn = dict.fromkeys(("errors", "position", "layers", "needle"), pathlib.Path("x.png"))
  written = [line for name, part in PARTS.items() for text in part.report(report[name], drawn)
             for line in text.splitlines() if line.startswith("|")]
  page = (RESULTS / "local_errors" / "README.md").read_text(encoding="utf-8").splitlines()
  assert len(written) == 70 and not [line for line in written if line not in page]


def test_the_page_of_compiled_programs_is_that_of_its_files(tmp_path):
  for path in (RESULTS / "aot").glob("*.json"):
    (tmp_path / path.name).write_bytes(path.read_bytes())
  results_page.write_page(tmp_path)
  assert (tmp_path / "README.md").read_bytes() == (RESULTS / "aot" / "README.md").read_bytes()


@pytest.fixture
def folder(tmp_path):
  results = tmp_path / "docs" / "results"
  results.mkdir(parents=True)
  rows = [{"name": "a", "loss": -1.234}, {"name": "b", "loss": 2.0}, {"name": "b", "loss": 3.0}]
  (results / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (results / "report.json").write_text(json.dumps({"parts": [{"name": "x", "values": [0.125, 0.5]}]}))
  (results / "table.md").write_text(f"# Runs\n\n{TABLE}")
  (tmp_path / "page.md").write_text("It has a loss\nof −1.23, and 12.5%.\n")
  return pathlib.Path(tmp_path)


def check(folder: pathlib.Path, entry: dict, *, is_complete: bool = False) -> list[str]:
  return check_figures.mistakes_of(folder, "page.md", [entry], is_complete)


def test_a_figure_is_found_across_lines_and_with_another_minus(folder):
  assert check(folder, ROW) == []
  share = {"says": "and {share:.1%}.", "from": {"share": ["report.json", "parts", {"name": "x"}, "values", 1]}}
  assert "does not say 'and 50.0%.'" in check(folder, share)[0]


@pytest.mark.parametrize(("change", "sentence"), [
  ({"says": "a loss of {row[loss]:.3f}"}, "page.md does not say 'a loss of -1.234', as its results do."),
  ({"says": "a loss of {row[loss]:.1f}"}, "page.md does not say 'a loss of -1.2', as its results do."),
  ({"says": "a loss"}, "has no figure"),
  ({"says": "a loss of {row[los]:.2f}"}, "'los'"),
  ({"from": {"row": ["table.jsonl", {"name": "b"}]}}, "2 entries of table.jsonl have {'name': 'b'}; name one"),
  ({"from": {"row": ["table.jsonl", {"name": "c"}]}}, "0 entries of table.jsonl"),
  ({"from": {"row": ["table.jsonl", {"all": {"name": "c"}}, "loss"]}}, "no entry of table.jsonl has {'name': 'c'}"),
  ({"from": {"row": ["none.jsonl", {"name": "a"}]}}, "none.jsonl cannot be read"),
  ({"from": {"row": {"root": [2]}}}, "root is no operation; choose one of ratio, less"),
  ({"says": "a gain of", "because": "a reason"}, "page.md does not say 'a gain of', which docs/figures declares."),
], ids=["value", "digits", "text", "field", "two", "none", "all", "file", "operation", "because"])
def test_a_wrong_entry_is_named(folder, change, sentence):
  assert sentence in check(folder, ROW | change)[0]


def test_rows_are_texts_of_their_own(folder):
  entry = {"says": "<word> {loss:.2f}", "from": {"loss": ["table.jsonl", {"name": "<name>"}, "loss"]}}
  assert check(folder, entry | {"rows": [{"word": "a loss of", "name": "a"}]}) == []
  rows = {"rows": [{"word": "a loss of", "name": "a"}, {"word": "a gain of", "name": "b"}]}
  assert "2 entries" in check(folder, entry | rows)[0]


def test_a_figure_of_a_complete_page_is_declared(folder):
  sentence, = check(folder, ROW, is_complete=True)
  assert sentence.startswith("page.md:2: 12.5 is a figure that docs/figures does not declare;")
  around = {"says": "of {row[loss]:.2f}, and 12.5%", "from": ROW["from"]}  # words around a value declare nothing
  assert check(folder, around, is_complete=True) == [sentence]
  both = {"says": ["a loss of −1.23", "12.5%"], "because": "printed only"}
  assert check(folder, both, is_complete=True) == []


def test_a_table_stands_in_the_file_it_came_from(folder):
  (folder / "page.md").write_text(f"{TABLE}\nEnd.\n")
  entry = {"table": "| run |", "stands_in": "table.md"}
  assert check(folder, entry, is_complete=True) == []
  (folder / "page.md").write_text("Text.\n\n| run | loss |\n|---|---:|\n| one | 2.9853 ± 0.0013 |\n")
  assert check(folder, entry) == ["page.md:3: the table is not that of table.md."]
  assert check(folder, entry | {"table": "| a |"}) == ["page.md has no table '| a |', which docs/figures declares."]


@pytest.mark.parametrize(("source", "value"), [
  ({"ratio": [6, 4]}, 1.5), ({"less": [6, 4]}, 2), ({"product": [100, 0.5]}, 50), ({"sum": [1, 2, 3]}, 6),
  ({"mean": [["report.json", "parts", 0, "values"]]}, 0.3125), ({"sd": [1, 3]}, 2 ** 0.5), ({"median": [1, 5, 2]}, 2),
  ({"min": [{"less": [["report.json", "parts", 0, "values"], {"list": [1, 1]}]}]}, -0.875),
  ({"max": [["table.jsonl", {"all": {"name": ["a", "b"]}}, "loss"]]}, 3.0),
  (["table.md", {"section": "Runs", "run": "one"}, "loss", 1], 0.0013),
], ids=str)
def test_values_can_be_combined(folder, source, value):
  assert value_of(folder, source) == pytest.approx(value, rel=1e-12)


def test_cells_are_numbers_lists_of_numbers_or_texts():
  head = "## A\n|  | a | a |  | b |\n|---|---|---|---|---|\n"
  row, = read_tables(head + "| x | 1,234 | 5.1, 6.1 | **3 %** | 2 (1 to 4) |\n")
  assert row == {"section": "A", "": "x", "a": 1234.0, "a 2": [5.1, 6.1], " 2": 3.0, "b": [2.0, 1.0, 4.0]}


@pytest.mark.parametrize(("text", "figures"), [
  ("It takes 3.5 s, 12 ms and 1,234.5 of 7 rows; 40 % or 6%; 5e-7.", "3.5 12 1,234.5 40 6 5e-7"),
  ("jax 0.10.2, Python 3.11, arXiv 2412.12094, libtpu 0.0.42.1, SmolLM2-135M, 1.7M and 512, bits", ""),
  ("`ratio=0.5` and [a page](b/1.5.md)\n\n    python x.py --rate=0.5\n\n```\n0.5\n```\n", ""),
  ("| 0.5 s |\n|---|\n| 2.5 |\n", "2.5"),
], ids=["prose", "names", "code", "table"])
def test_figures_have_a_point_or_a_unit(text, figures):
  assert [text[start:stop] for start, stop in figures_of(text)] == figures.split()


@pytest.mark.parametrize(("text", "value", "spec", "is_there"), [
  ("x 0.123", 0.1234, ".3f", True), ("x 0.1234", 0.1234, ".3f", False), ("x 10.123", 0.1234, ".3f", False),
  ("x **0.123**", 0.1234, ".3f", True), ("x 1e-6", 1e-6, ".0e", True), ("x 2.980", 2.9795, ".3f", True),
  ("x 2.979", 2.9795, ".3f", True), ("x 2.981", 2.9795, ".3f", False), ("x −0.123", 0.1234, ".3f", False),
], ids=str)
def test_a_value_is_its_whole_figure(text, value, spec, is_there):
  spans = places_of(text, f"{{value:{spec}}}", {"value": value})
  assert [text[start:stop] for start, stop in spans] == [text.removeprefix("x ").strip("*")] * is_there
