"""The registry: every row can be made, every claim can be judged, and no sample bears the name of a data set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lattice_jax.config_text import read_config
from lattice_jax.data.published import SAMPLES
from lattice_jax.reproduce.earlier import EARLIER
from lattice_jax.reproduce.paper import row_over
from lattice_jax.reproduce.registry import MEASUREMENTS, TABLES, find_row, find_table, measurements_of
from lattice_jax.reproduce.rows import Paper, Program, Published, Row, Train
from lattice_jax.reproduce.verdicts import judge_published
from lattice_jax.source_code import ROOT, reached, tree_sources

ROWS = [(table, row) for table in TABLES.values() for row in table.rows]
REAL = ("enwik8", "pg19", "imagenet64")


def test_names_are_unique_and_claims_read_rows_that_are_there():
  for table in TABLES.values():
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names), table.name
    for claim in table.claims:
      assert all(find_row(table, name).sample for name in claim.rows), claim.name
    assert all(row_over(table, row) for row in table.rows if row.paper.over)
  assert {key.split("/")[0] for key in EARLIER} <= set(TABLES)
  assert all(find_row(TABLES[key.split("/")[0]], key.split("/")[1]) for key in EARLIER)


def test_every_config_of_every_row_can_be_read():
  trainings = {make for _, row in ROWS if row.paper and isinstance(make := row.paper.make, Train)}
  trainings |= {one.make for one in MEASUREMENTS.values() if isinstance(one.make, Train)}
  for make in trainings:
    assert read_config(str(ROOT / make.config), make.overrides)


def test_samples_fit_into_two_hours_and_bear_no_name_of_a_data_set():
  assert sum(one.minutes for one in MEASUREMENTS.values()) <= 120
  shipped = {path.name for path in SAMPLES.iterdir() if path.is_dir()}
  for one in MEASUREMENTS.values():
    assert not re.search(r"enwik8|pg-?19|imagenet", one.data, re.IGNORECASE), one.name
    if isinstance(one.make, Train):
      source = read_config(str(ROOT / one.make.config), one.make.overrides).data.source
      assert source in shipped | {"recall"} and source.removesuffix("_sample") in one.data.replace("synthetic ", "")
    else:
      assert not set(one.make.words) & set(REAL)
      assert not one.make.source or one.make.source in shipped


def test_the_code_of_every_command_is_there():
  for one in MEASUREMENTS.values():
    if isinstance(one.make, Program):
      assert one.make.code and reached(one.make.code, tree_sources(), ()), one.name
      assert (ROOT / one.make.words[0]).is_file()


def test_published_figures_are_quoted_only_from_sources_that_have_them():
  for table, row in ROWS:
    published = row.published
    assert bool(published.text) == (published.source in ("paper", "code", "secondary")), (table.name, row.name)
    if published.text:
      judge_published(published.text, [1.0])  # a number, or a bound


def test_results_made_before_are_where_the_registry_says():
  assert all(isinstance(one.value(ROOT), float) for one in EARLIER.values())


def test_what_rows_need_comes_before_them_and_once():
  found = [one.name for one in measurements_of([row for _, row in ROWS])]
  assert sorted(found) == sorted(MEASUREMENTS)
  assert max(found.index(name) for name in MEASUREMENTS["lattice_lengths"].needs) < found.index("lattice_lengths")


def test_a_name_that_is_not_there_is_refused_with_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'vq_codes'"):
    find_table("vq_code")
  with pytest.raises(ValueError, match="Did you mean 's256'"):
    find_row(TABLES["vq_codes"], "s25")


def test_a_row_without_a_run_says_why():
  published, paper = Published("", "bits", "missing"), Paper(Train("configs/quickstart.py"))
  with pytest.raises(ValueError, match="say in `missing` why"):
    Row("r", "a row", published, paper, None)
  with pytest.raises(ValueError, match="is not one of paper"):
    Published("1", "bits", "hearsay")


def test_no_table_names_a_file_of_this_machine():
  for path in Path(ROOT / "lattice_jax" / "reproduce").rglob("*.py"):
    assert not re.search(r"/(?:tmp|work|home)/", path.read_text(encoding="utf-8")), path
