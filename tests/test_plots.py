"""Plots from the files that runs write."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config_checks import to_dict
from lattice_jax.inspect import plots
from lattice_jax.inspect.codebooks import code_shares, perplexity
from lattice_jax.inspect.names import result_names, run_names
from lattice_jax.inspect.plots import panel_grid, plot_answers, plot_buckets, plot_loss, read_metrics, smooth
from lattice_jax.models.decoder import abstract_variables
from lattice_jax.sharding import make_mesh, unbox
from lattice_jax.training.state import create_state
from tests.training import tiny

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG"


def write_run(workdir, steps=20, unit="byte"):
  workdir.mkdir()
  (workdir / "run.json").write_text(json.dumps({"unit": unit}))
  lines = [{"step": step, "loss": 3.0, "bits_per_byte": 2.0 + 6.0 / (step + 1)} for step in range(steps)]
  lines[10:10] = [{"step": 10, "split": "validation", "protocol": "cold", "bits_per_byte": 2.5}]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return workdir


def write_eval(workdir):
  buckets = [{"start": 0, "stop": 8, "tokens": 5, "bits_per_byte": 3.0},
             {"start": 8, "stop": 16, "tokens": 0, "bits_per_byte": None}]
  path = workdir / "eval_test_cold.json"
  path.write_text(json.dumps(
    {"split": "test", "protocol": "cold", "bits_per_byte": 3.0, "overrides": [], "buckets": buckets}))
  return path


def test_training_and_evaluation_lines_are_told_apart(tmp_path):
  train, evaluations = read_metrics(write_run(tmp_path / "a") / "metrics.jsonl")
  assert len(train) == 20
  assert [line["bits_per_byte"] for line in evaluations] == [2.5]


def test_smoothing_averages_the_last_values():
  np.testing.assert_allclose(smooth(np.array([4.0, 2.0, 0.0, 0.0]), 2), [4.0, 3.0, 1.0, 0.0])
  np.testing.assert_allclose(smooth(np.array([4.0, 2.0]), 1), [4.0, 2.0])


def test_what_eval_did_not_write_is_refused(tmp_path):
  run = write_run(tmp_path / "a")
  for path in (run, run / "run.json", run / "metrics.jsonl"):
    with pytest.raises(ValueError, match=r"is not a file that eval\.py wrote; give one, such as RUN/eval_test_cold_"):
      plot_buckets([path], tmp_path / "position.png")


def test_both_plots_are_png_files(tmp_path):
  run = write_run(tmp_path / "a")
  plot_loss([run, write_run(tmp_path / "b", steps=1)], tmp_path / "new" / "loss.png")
  plot_buckets([write_eval(run)], tmp_path / "position.png")
  assert (tmp_path / "new" / "loss.png").read_bytes().startswith(PNG)
  assert (tmp_path / "position.png").read_bytes().startswith(PNG)


def test_answers_of_several_tasks_are_drawn_and_a_text_has_none(tmp_path):
  run = write_run(tmp_path / "a", unit="answer")
  group = {"label": "pairs", "first": 4, "last": 4, "answers": 9, "accuracy": 0.5, "nll_per_answer": 1.0}
  answers = [group, group | {"first": 8, "last": 8}, group | {"label": "distance", "first": 2, "last": 3}]
  path = write_eval(run)
  with pytest.raises(ValueError, match=r"is not the result of a task with answers; use --what=position"):
    plot_answers([path], tmp_path / "answers.png")
  path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 0.5, "answers": answers}))
  plot_answers([path, path], tmp_path / "answers.png")
  assert (tmp_path / "answers.png").read_bytes().startswith(PNG)


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
  runs = []
  for place, pattern in (("x/a", ["lattice"]), ("y/a", ["lattice"]), ("y/b", ["window", "lattice"])):
    (tmp_path / place).mkdir(parents=True)
    runs.append(tmp_path / place)
    (runs[-1] / "run.json").write_text(json.dumps({"config": {"model": {"pattern": pattern}}}))
  assert run_names(runs[1:]) == ["lattice", "window+lattice"]
  assert run_names(runs) == ["x/a", "y/a", "y/b"]
  assert run_names(runs[:1] * 2) == ["a", "a"]
  (runs[2] / "run.json").unlink()
  assert run_names(runs[1:]) == ["a", "b"]


def test_results_are_called_by_the_settings_in_which_they_differ():
  result = {"split": "test", "protocol": "cold", "bits_per_byte": 2.0, "overrides": [], "step": 3, "seq_len": 64}
  others = [result | {"step": 7}, result | {"step": None, "overrides": ["model.vq.cache=False"]}]
  assert result_names(["a", "a", "b"], [result, *others], "bits_per_byte", "{:.1f}") == [
    "a: test, cold, step 3, 2.0", "a: test, cold, step 7, 2.0", "b: test, cold, model.vq.cache=False, 2.0"]
  assert result_names(["a"], [result], "bits_per_byte", "{:.1f}") == ["a: test, cold, 2.0"]


@pytest.mark.parametrize(("number", "rows"), [
  (1, [1]), (2, [2]), (5, [5]), (6, [3, 3]), (7, [4, 3]), (8, [4, 4]), (9, [3, 3, 3]), (13, [5, 5, 3])], ids=str)
def test_panels_stand_in_rows_that_leave_few_places_empty(number, rows):
  figure, grid = panel_grid(number, (2, 2))
  assert [len(line) for line in grid] == rows
  assert sum(axes.get_visible() for axes in figure.axes) == number


def test_a_position_plot_ends_with_the_data_and_has_no_curve_where_nothing_was_evaluated(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, "save_figure", lambda figure, out: drawn.append(figure.axes[0]))
  path = write_eval(write_run(tmp_path / "a"))
  result = json.loads(path.read_text())
  bucket = result["buckets"][0]
  result["buckets"] += [bucket | {"start": 16, "stop": 21}, result["buckets"][1] | {"start": 21, "stop": 64}]
  path.write_text(json.dumps(result))
  plot_buckets([path], tmp_path / "position.png")
  values, edges, _ = drawn[0].patches[0].get_data()
  assert drawn[0].get_xlim() == (0, 21) and edges.tolist() == [0, 8, 16, 21]
  np.testing.assert_array_equal(values, [3.0, np.nan, 3.0])


def test_bytes_and_dims_do_not_share_an_axis(tmp_path):
  texts, images = write_run(tmp_path / "a"), write_run(tmp_path / "b", unit="dim")
  plot_loss([images], tmp_path / "loss.png")
  with pytest.raises(ValueError, match="plot texts and images apart"):
    plot_loss([texts, images], tmp_path / "loss.png")


def codebook_model(**changes):
  vq = dataclasses.replace(tiny.make_config().model.vq, heads=2, kv_heads=2)
  return dataclasses.replace(tiny.make_config().model, vq=vq, **changes)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_code_shares_are_rows_of_layers_and_codebooks_in_any_pattern(scan_layers):
  model = codebook_model(layers=4, pattern=("window", "vq"), scan_layers=scan_layers)
  model = dataclasses.replace(model, attention=dataclasses.replace(model.attention, window=8))
  boxed = abstract_variables(model)["buffers"]
  buffers = jax.tree.map(lambda leaf: np.ones(leaf.shape), unbox(boxed))
  first = buffers["groups" if scan_layers else "group_0"]["block_1"]["memory"]["codebook_count"]
  (first[0, 1] if scan_layers else first[1])[1:] = 0.0  # layer 2, second codebook: one code only
  names, share = code_shares(model, buffers)
  assert names == ["2 · 1", "2 · 2", "4 · 1", "4 · 2"]
  np.testing.assert_allclose(share.sum(1), 1.0)
  np.testing.assert_allclose(perplexity(share), [8.0, 1.0, 8.0, 8.0])


def test_a_model_without_codebook_is_named():
  with pytest.raises(ValueError, match=r"model\.pattern=attention has no memory with a codebook"):
    code_shares(dataclasses.replace(tiny.make_config().model, pattern=("attention",)), {})


def test_a_run_without_updates_is_named(tmp_path):
  with pytest.raises(ValueError, match="does not exist; give the workdir"):
    plot_loss([tmp_path], tmp_path / "loss.png")
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(ValueError, match="no training line yet"):
    plot_loss([tmp_path], tmp_path / "loss.png")


def command(folder, *arguments):
  return subprocess.run(
    [sys.executable, ROOT / "scripts" / "plot.py", *arguments], capture_output=True, text=True, cwd=folder, check=False)


def test_the_command_draws_and_refuses_in_one_sentence(tmp_path):
  run = write_run(tmp_path / "a")
  assert command(tmp_path, run).returncode == 0
  assert (tmp_path / "loss.png").exists()
  before = (tmp_path / "loss.png").read_bytes()
  again = command(tmp_path, run)
  assert (again.returncode, again.stderr) == (
    2, "plot.py: loss.png exists already; name the file to write with --out, which may replace one.\n")
  assert command(tmp_path, write_run(tmp_path / "b", steps=9), "--out=loss.png").returncode == 0
  assert (tmp_path / "loss.png").read_bytes() != before
  refused = command(tmp_path, run, write_eval(run))
  assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_the_command_draws_the_codebooks_of_the_newest_checkpoint(tmp_path):
  config = dataclasses.replace(tiny.make_config(), model=codebook_model())
  (tmp_path / "run.json").write_text(json.dumps({"config": to_dict(config)}))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, create_state(config, make_mesh(config.mesh, jax.devices()[:1])), {})
  checkpoints.wait()
  checkpoints.close()
  drawn = command(tmp_path, "--what=codebook", tmp_path, "--out=codes.png")
  assert (drawn.returncode, drawn.stderr) == (0, "")
  assert (tmp_path / "codes.png").read_bytes().startswith(PNG)
