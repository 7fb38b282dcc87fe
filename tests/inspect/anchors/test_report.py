"""The report on anchors, from a stored run to its files."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from lattice_jax.inspect.anchors import probes
from lattice_jax.inspect.anchors.readers import load_model
from lattice_jax.inspect.anchors.run import Sizes, write_report
from tests.inspect.anchors import tiny

PARTS = ("text", "cache", "recall", "demonstrations", "attention")
SIZES = Sizes(windows=2, seq_len=48, chunk_len=24, context=64, steps=3, trials=1, rows=2, seed=0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  return load_model(
    pretrained=None, workdir=tiny.write_run(tmp_path_factory.mktemp("run")), rule=None, overrides=())


def write(loaded, after, out, parts=PARTS, **sizes):
  return write_report(
    loaded, after, out, dataclasses.replace(SIZES, **sizes), split="test", parts=parts, command="the command",
    say=lambda line: None)


@pytest.mark.thorough
def test_the_report_has_every_part_and_its_pictures(loaded, tmp_path, monkeypatch):
  monkeypatch.setattr(probes, "DISTANCES", (1,))
  monkeypatch.setattr(probes, "SHOTS", (0, 1))
  data, page = write(loaded, None, tmp_path)
  content, text = json.loads(data.read_text()), page.read_text()
  assert list(content) == ["facts", *PARTS]
  assert content["facts"]["step"] == 3 and content["facts"]["is_trained"] and content["facts"]["git_commit"]
  names = ["full", "masked"]
  assert list(dict.fromkeys(reading["reader"] for reading in content["text"]["readings"])) == names
  assert content["cache"]["room"] == 64 and [rule["rule"] for rule in content["cache"]["rules"]] == [
    "every:5", "every:10"]
  assert {record["reader"] for record in content["recall"]} == set(names)
  assert {record["reader"] for record in content["demonstrations"]} == set(names)
  assert content["attention"]["reader"] == "masked"
  shown = re.findall(r"!\[.*\]\((.*)\)", text)
  assert sorted(shown) == sorted(path.name for path in tmp_path.glob("*.png")) and len(shown) == 6
  assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in shown)
  assert "`the command`" in text and "{" not in text
  for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_run_that_was_trained_on_stands_beside(loaded, tmp_path):
  content = json.loads(write(loaded, loaded, tmp_path, parts=("text",))[0].read_text())
  names = ["full", "masked", "after: full", "after: masked"]
  assert list(dict.fromkeys(reading["reader"] for reading in content["text"]["readings"])) == names
  assert list(content["text"]["by_place"][0]["above_full"]) == names[1::2]


def test_a_part_alone_needs_no_other(loaded, tmp_path):
  data, page = write(loaded, None, tmp_path, parts=("attention",))
  assert list(json.loads(data.read_text())) == ["facts", "attention"]
  assert sorted(path.name for path in tmp_path.glob("*.png")) == ["attention_layers.png", "attention_text.png"]
  assert "## Cache" not in page.read_text() and "learned under the mask" in page.read_text()


@pytest.mark.parametrize(("sizes", "message"), [
  ({"seq_len": 100}, "--seq_len=100 is more than the 99 tokens that tiny was made for; use a smaller --seq_len"),
  ({"context": 100}, "--context=100 is more than the 99 tokens that tiny"),
  ({"steps": 64}, "--steps=64 are the last of --context=64 tokens"), ({"steps": 1}, "--steps=1 are the last"),
], ids=["seq_len", "context", "steps", "one"])
def test_lengths_that_do_not_fit_are_refused(loaded, tmp_path, sizes, message):
  with pytest.raises(ValueError, match=message):
    write(dataclasses.replace(loaded, context_len=99), None, tmp_path / "out", **sizes)
  assert not (tmp_path / "out").exists()
