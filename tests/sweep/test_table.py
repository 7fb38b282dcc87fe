"""The figures of a table, by hand, and the plots."""

from __future__ import annotations

import csv
import json
import math

import pytest

from configs import ablation_lattice
from lattice_jax.config_checks import parse_config, to_dict
from lattice_jax.sweep.labels import metric_label
from lattice_jax.sweep.plot import numbers_of, plot_table
from lattice_jax.sweep.search import GridSearch
from lattice_jax.sweep.table import check_against, spread
from lattice_jax.sweep.table_files import format_table, write_table
from lattice_jax.sweep.trials import DONE, FAILED, TrialRecord
from tests.sweep import fake, sweeps


def finish(sweep, workdir):
  """As if every trial had been run: the loss is 2 + |size − 3| + seed / 10."""
  search = GridSearch(sweep)
  for index in range(search.total):
    trial = search.trial(index)
    folder = workdir / trial.id
    folder.mkdir(parents=True)
    size = next(value for name, value in trial.values.items() if name != "seed")
    fake.write_run(folder, size if isinstance(size, (int, float)) else len(size), trial.values["seed"])
    TrialRecord(trial.index, trial.id, trial.values, sweep.arguments(trial.values), DONE, seconds=1.0).write(folder)


def test_rows_are_means_over_seeds_best_first(tmp_path):
  sweep = sweeps.read(tmp_path, parameters={"size": {"values": [1, 3.5]}, "seed": {"values": [0, 1, 2]}})
  finish(sweep, tmp_path / "runs")
  table = sweeps.table(sweep, tmp_path / "runs", beyond=(8, 16))
  assert [row.setting for row in table.rows] == [(("size", 3.5),), (("size", 1),)]
  write_table(table, tmp_path / "out")
  best = json.loads((tmp_path / "out" / "table.jsonl").read_text().splitlines()[0])
  assert best[f"{sweeps.METRIC} mean"] == pytest.approx((2.5 + 2.6 + 2.7) / 3)
  assert best[f"{sweeps.METRIC} sd"] == pytest.approx(math.sqrt((0.01 + 0 + 0.01) / 2))
  assert best["bits beyond 8 mean"] == pytest.approx(2.6 - 0.4 * 10 / 40)
  assert best["bits beyond 16 mean"] == pytest.approx(2.2)
  assert (best["trials"], best["parameters"], best["tokens_per_second"], best["commit"], best["command"]) == (
    3, 1000, 100, "abc", "the command")
  assert [entry["seed"] for entry in best["by_seed"]] == [0, 1, 2]
  first, second = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
  assert (first["size"], second["size"]) == ("3.5", "1")
  text = (tmp_path / "out" / "table.md").read_text()
  assert "| 3.5 | 3 | 2.6000 ± 0.1000 | 2.5000 ± 0.1000 | 2.2000 ± 0.1000 | 1,000 | 100 |" in text
  assert "    the command\n" in text and "commit abc." in text


def test_differences_are_taken_seed_by_seed(tmp_path):
  sweep = sweeps.read(tmp_path)
  finish(sweep, tmp_path / "runs")
  runs = tmp_path / "runs"
  (runs / "size=4_seed=0" / "trial.json").unlink()  # not done yet
  lines = format_table(sweeps.table(sweep, runs, against="size=2")).splitlines()
  assert "Δ to size=2" in lines[6]
  assert lines[8:11] == [
    "| 2 | 2 | 3.0500 ± 0.0707 | – | 1,000 | 100 |",
    "| 4 | 1 | 3.1000 | +0.0000 | 1,000 | 100 |",
    "| 1 | 2 | 4.0500 ± 0.0707 | +1.0000 ± 0.0000 | 1,000 | 100 |"]
  assert sweeps.table(sweep, runs, against="first").reference.setting == (("size", 2),)
  with pytest.raises(ValueError, match=r"--against=size=3 is not one of size=1, size=2, size=4, first"):
    sweeps.table(sweep, runs, against="size=3")


def test_a_row_is_called_the_same_before_its_trials_are_done(tmp_path):
  sweep = sweeps.read(tmp_path)
  finish(sweep, tmp_path / "runs")
  for trial in (tmp_path / "runs").glob("size=[24]_seed=*/trial.json"):
    trial.unlink()
  table = sweeps.table(sweep, tmp_path / "runs", against="size=2")  # not done, so there are no differences to it
  assert [table.label(row.setting) for row in table.rows] == ["size=1"] and table.reference is None
  check_against(sweep, "size=4")
  with pytest.raises(ValueError, match=r"--against=4 is not one of size=1, size=2, size=4, first"):
    check_against(sweep, "4")


def test_trials_of_an_older_file_are_left_out(tmp_path):
  finish(sweeps.read(tmp_path), tmp_path / "runs")
  finish(sweeps.read(tmp_path, parameters={"width": {"values": [3]}, "seed": {"values": [0, 1]}}), tmp_path / "runs")
  table = sweeps.table(
    sweeps.read(tmp_path, parameters={"size": {"values": [1, 4]}, "seed": {"values": [0, 1]}}), tmp_path / "runs")
  assert [row.setting for row in table.rows] == [(("size", 4),), (("size", 1),)]
  assert (table.foreign, table.unfinished) == (4, 0)
  program = sweeps.read(tmp_path, command=["${program}", "${args}", "--fast"])
  assert (sweeps.table(program, tmp_path / "runs").rows, sweeps.table(program, tmp_path / "runs").foreign) == ((), 8)
  assert "4 trial(s) in the folder are not of this sweep file and are left out." in format_table(table)


def test_the_state_of_every_memory_is_printed(tmp_path):
  sweep = sweeps.read(tmp_path, parameters={"size": {"values": [1, 3]}, "seed": {"values": [0]}})
  finish(sweep, tmp_path / "runs")
  for folder, name in (("size=1", "ttt_linear"), ("size=3", "base")):
    path = tmp_path / "runs" / folder / "run.json"
    config = to_dict(parse_config(ablation_lattice.get_config(name)))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))
  text = format_table(sweeps.table(sweep, tmp_path / "runs"))
  assert "| parameters | state of a layer | bytes between tokens | tokens/s |" in text
  assert metric_label(sweeps.METRIC) == "bits per byte on validation (cold)" and metric_label("loss") == "loss"
  assert "| 3 | 1 | 2.0000 | 1,000 | unit 4,096 + tail 960 | 16,388 + tail 3,840 | 100 |" in text
  assert "| 1 | 1 | 4.0000 | 1,000 | weight 2,112 + total 2,112 + tail 576 | 16,904 + tail 2,304 | 100 |" in text
  write_table(sweeps.table(sweep, tmp_path / "runs"), tmp_path / "out")
  best = json.loads((tmp_path / "out" / "table.jsonl").read_text().splitlines()[0])
  assert (best["state_bytes"], best["tail_bytes"]) == (16_388, 3_840)


def test_a_base_is_shown_with_its_memory_and_still_found_by_its_name(tmp_path):
  sweep = sweeps.read(tmp_path, parameters={"config": {"values": ["x:base", "x:linear"]}, "seed": {"values": [0]}})
  finish(sweep, tmp_path / "runs")
  for folder, name in (("config=base", "base"), ("config=linear", "linear")):
    path = tmp_path / "runs" / folder / "run.json"
    path.write_text(json.dumps(
      json.loads(path.read_text()) | {"config": to_dict(parse_config(ablation_lattice.get_config(name)))}))
  table = sweeps.table(sweep, tmp_path / "runs", against="config=base")
  assert table.shown == {"config": {"x:base": "lattice (base)", "x:linear": "linear"}}
  assert "| lattice (base) | 1 |" in format_table(table) and "Δ to config=base" in format_table(table)


def test_what_is_missing_is_said(tmp_path):
  sweep = sweeps.read(tmp_path)
  assert "6 trial(s) not finished, 0 failed" in format_table(sweeps.table(sweep, tmp_path / "runs"))
  folder = tmp_path / "runs" / "size=1_seed=0"
  folder.mkdir(parents=True)
  values = {"size": 1, "seed": 0}
  TrialRecord(0, "size=1_seed=0", values, sweep.arguments(values), FAILED, "no room").write(folder)
  text = format_table(sweeps.table(sweep, tmp_path / "runs"))
  assert "5 trial(s) not finished, 1 failed.\n- size=1_seed=0: no room\n" in text
  write_table(sweeps.table(sweep, tmp_path / "runs"), tmp_path / "out")
  assert (tmp_path / "out" / "table.csv").read_text() == ""


def test_the_largest_is_first_where_it_is_best(tmp_path):
  sweep = sweeps.read(tmp_path, metric={"name": sweeps.METRIC, "goal": "maximize"})
  finish(sweep, tmp_path / "runs")
  assert dict(sweeps.table(sweep, tmp_path / "runs").rows[0].setting)["size"] == 1


@pytest.mark.parametrize(("start", "message"), [
  (12, r"--beyond=12: .* by position from 0, 8, 16, 32; use one of them"),
  (32, "--beyond=32: .* has no target at position 32 or later")])
def test_positions_between_buckets_and_behind_the_last_token_are_refused(tmp_path, start, message):
  sweep = sweeps.read(tmp_path)
  finish(sweep, tmp_path / "runs")
  with pytest.raises(ValueError, match=message):
    sweeps.table(sweep, tmp_path / "runs", beyond=(start,))


def test_one_seed_has_no_spread():
  assert spread([2.5]).text() == "2.5000"
  assert spread([-1e-9, 0.0]).text("+") == "+0.0000 ± 0.0000"


@pytest.mark.parametrize("parameters", [
  {"size": {"values": [1, 4, 64]}},
  {"config": {"values": ["a.py:base", "a.py:codes64", "a.py:mqa"]}},
  {"size": {"values": [1, 2]}, "form": {"values": ["scan", "chunk"]}},
], ids=["numbers", "names", "both"])
def test_plots_are_png_files(tmp_path, parameters):
  sweep = sweeps.read(tmp_path, parameters=parameters | {"seed": {"values": [0, 1]}})
  finish(sweep, tmp_path / "runs")
  plot_table(sweeps.table(sweep, tmp_path / "runs"), tmp_path / "new" / "plot.png")
  assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_names_that_end_in_numbers_lie_on_an_axis_of_numbers(tmp_path):
  values = ["a.py:base", "a.py:slots16", "a.py:slots192", "a.py:slots", "a.py:step0.5"]
  sweep = sweeps.read(tmp_path, parameters={"config": {"values": values}, "seed": {"values": [0, 1]}})
  finish(sweep, tmp_path / "runs")
  table = sweeps.table(sweep, tmp_path / "runs")
  assert numbers_of(table, "config=slots") == {"a.py:slots16": 16, "a.py:slots192": 192}
  assert numbers_of(table, "config=step") == {"a.py:step0.5": 0.5}
  assert not numbers_of(table, "config")
  plot_table(table, tmp_path / "plot.png", ["config", "config=slots"])
  assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
  with pytest.raises(ValueError, match="--x=config=codes: no value of config that is done ends in codes and a number"):
    plot_table(table, tmp_path / "plot.png", ["config=codes"])


def test_a_plot_of_nothing_or_of_what_does_not_vary_is_refused(tmp_path):
  sweep = sweeps.read(tmp_path)
  with pytest.raises(ValueError, match="no two settings are done yet"):
    plot_table(sweeps.table(sweep, tmp_path / "runs"), tmp_path / "plot.png")
  finish(sweep, tmp_path / "runs")
  with pytest.raises(ValueError, match="--x=seed is not a parameter that varies: size"):
    plot_table(sweeps.table(sweep, tmp_path / "runs"), tmp_path / "plot.png", ["seed"])
