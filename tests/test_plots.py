"""Plots from the files that runs write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lattice_jax.inspect.plots import plot_buckets, plot_loss, read_metrics, smooth

ROOT = Path(__file__).parents[1]
PNG = b"\x89PNG"


def write_run(workdir, steps=20):
  workdir.mkdir()
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


def test_both_plots_are_png_files(tmp_path):
  run = write_run(tmp_path / "a")
  plot_loss([run, write_run(tmp_path / "b", steps=1)], tmp_path / "new" / "loss.png")
  plot_buckets([write_eval(run)], tmp_path / "position.png")
  assert (tmp_path / "new" / "loss.png").read_bytes().startswith(PNG)
  assert (tmp_path / "position.png").read_bytes().startswith(PNG)


def test_a_run_without_updates_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist; give the workdir"):
    plot_loss([tmp_path], tmp_path / "loss.png")
  (tmp_path / "metrics.jsonl").write_text("")
  with pytest.raises(ValueError, match="no training line yet"):
    plot_loss([tmp_path], tmp_path / "loss.png")


def test_the_command_draws_and_refuses_in_one_sentence(tmp_path):
  run = write_run(tmp_path / "a")

  def command(*paths):
    return subprocess.run(
      [sys.executable, ROOT / "scripts" / "plot.py", *paths, f"--out={tmp_path / 'loss.png'}"],
      capture_output=True, text=True, cwd=tmp_path)

  assert command(run).returncode == 0
  assert (tmp_path / "loss.png").exists()
  refused = command(run, write_eval(run))
  assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
