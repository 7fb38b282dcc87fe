"""What a report reads, and the sentence about each thing that cannot be read."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from lattice_jax.report import curves, maps, tables
from lattice_jax.report.workdir import read_runs
from tests.report import workdirs


def test_a_half_written_line_is_left_out(tmp_path):
  folder = workdirs.write_run(tmp_path / "run", steps=4, tail='{"step": 5, "lo')
  (run,), notes = read_runs([folder])
  assert [line["step"] for line in run.updates] == [1, 2, 3, 4] and notes == []


def test_the_folder_of_a_sweep_stands_for_its_runs_with_updates(tmp_path):
  for name in ("a", "b"):
    workdirs.write_run(tmp_path / name, steps=4)
  (tmp_path / "c").mkdir()
  workdirs.write_description(tmp_path / "c")
  runs, notes = read_runs([tmp_path, tmp_path / "a"])
  assert [run.name for run in runs] == ["a", "b"], "a run that is named twice is one run"
  assert notes == [f"{tmp_path}/c has done no update yet, and is left out."]


@pytest.mark.parametrize("make, sentence", [
  (lambda folder: None, "there is no folder .*; give the workdir of a run"),
  (lambda folder: folder.mkdir(), "holds no metrics.jsonl, nor a result of eval.py"),
  (lambda folder: (folder.mkdir(), workdirs.write_description(folder)), "has done no update yet: metrics.jsonl has no"),
  (lambda folder: (folder.mkdir(), (folder / "metrics.jsonl").write_text('{"step": 1')), "has no whole line"),
  (lambda folder: (workdirs.write_run(folder), (folder / "run.json").write_text("{")), "run.json is not readable JSON"),
  (lambda folder: ((folder / "a").mkdir(parents=True), workdirs.write_description(folder / "a")),
   "none of the 1 runs in .* has done an update"),
], ids=["missing", "empty", "waiting", "half", "damaged", "sweep"])
def test_what_is_no_run_is_refused_in_one_sentence(tmp_path, make, sentence):
  make(tmp_path / "run")
  with pytest.raises(ValueError, match=sentence) as caught:
    read_runs([tmp_path / "run"])
  assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("name, find", [
  ("eval_test_cold_1.json", lambda run: run.results), ("audit/audit.json", lambda run: maps.find_maps([run])),
  ("codebook.json", lambda run: maps.find_maps([run])),
  ("passkey_1/kept/64_lagkv%3Aratio=0.25.npy", lambda run: maps.find_maps([run]))])
def test_a_damaged_result_is_named(tmp_path, name, find):
  workdirs.write_results(workdirs.write_run(tmp_path / "run"))
  (tmp_path / "run" / name).write_bytes(b"[1, 2")
  (run,), _ = read_runs([tmp_path / "run"])
  with pytest.raises(ValueError, match=re.escape(name)):
    find(run)


def test_a_curve_keeps_the_mean_and_the_extremes_of_each_stretch(tmp_path):
  (tmp_path / "run").mkdir()
  lines = [workdirs.update(step, float(step % 2) if step != 7 else None) for step in range(1, 2401)]
  (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  drawn = curves.all_curves(read_runs([tmp_path / "run"])[0])
  loss = drawn["charts"][0]["series"][0]
  steps = drawn["axes"][0]["steps"]
  assert len(loss["values"]) == len(steps) == 300 and steps[-1] == 2400 and steps[0] == 8
  assert loss["values"][1] == 0.5 and loss["values"][0] == pytest.approx(3 / 7, rel=1e-4), "a missing loss counted"
  assert (loss["low"][1], loss["high"][1]) == (0.0, 1.0)


def test_time_goes_on_over_the_processes_of_a_run(tmp_path):
  (tmp_path / "run").mkdir()
  seconds = [60.0, 120.0, 30.0, 90.0, 45.0]
  lines = [workdirs.update(step, 1.0, time_elapsed=time) for step, time in enumerate(seconds, start=1)]
  (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (run,), _ = read_runs([tmp_path / "run"])
  assert curves.all_curves([run])["axes"][0]["minutes"] == [1.0, 2.0, 2.5, 3.5, 4.25]
  assert curves.seconds_of(run) == 255.0


def test_a_map_is_sent_as_levels_of_its_scale():
  told = {"run": 0, "title": "", "caption": "", "rows": ["r"], "x": ""}
  sent = maps.heat_map(np.array([[1e-3, 0.1, 10.0, np.nan]]), is_log=True, span=(1e-3, 10.0), **told)
  assert list(base64.b64decode(sent.data)) == [0, 125, 250, 255]
  wide = maps.heat_map(np.arange(1024.0)[None], join=np.max, **told)
  levels = list(base64.b64decode(wide.data))
  assert len(levels) == 512 and wide.per == 2.0 and levels[0] == 0 and levels[-1] == 250


def test_what_makes_a_missing_map_is_said_and_only_for_memories_that_have_one(tmp_path):
  workdirs.write_run(tmp_path / "has maps")
  workdirs.write_results(tmp_path / "has maps")
  config = workdirs.CONFIG | {"model": {"pattern": ["vq"]}}
  workdirs.write_run(tmp_path / "vq only", config=config)
  found = maps.find_maps(read_runs([tmp_path])[0])
  command = f"python scripts/plot.py --what=codebook '{tmp_path}/vq only' --out='{tmp_path}/vq only'/codebook.png"
  assert {heading: (len(shown), commands) for heading, (shown, commands) in found.items()} == {
    "Slots": (3, []), "Anchors": (1, []), "Caches": (2, []), "Codebooks": (1, [command])}


def test_only_fields_that_differ_are_compared(tmp_path):
  for seed in range(2):
    config = workdirs.CONFIG | {"train": {"steps": 40, "seed": seed}}
    workdirs.write_run(tmp_path / str(seed), config=config | ({"extra": "x"} if seed else {}))
  runs, _ = read_runs([tmp_path])
  table = tables.config_table(runs)
  assert [[cell.text for cell in row] for row in table.rows] == [["train.seed", "0", "1"], ["extra", "–", "x"]]
  assert tables.config_table(runs[:1]) is None
  same = {row[0].text: row[1].text for row in tables.common_config(runs).rows}
  assert same == {"name": "tiny", "model.dim": "16", "model.pattern": '["lattice", "vq", "anchor", "attention"]',
                  "data.source": "books_sample", "train.steps": "40"}
