"""Runs in windows longer than their training: what is read, what is kept, what the table says."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import Config, DataConfig, EvalConfig, ModelConfig, RecallConfig
from lattice_jax.config_checks import to_dict
from lattice_jax.data import recall
from lattice_jax.evaluation.loaded_model import load_run
from lattice_jax.memories.gated_linear.config import GatedLinearConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox
from lattice_jax.sweep import lengths
from lattice_jax.sweep.lengths import Measured, format_lengths, measure, plot_lengths

MODEL = ModelConfig(
  dim=16, layers=1, pattern=("scalar_decay",), block="mlp", mlp_dim=16,
  gated_linear=GatedLinearConfig(key_dim=4, value_dim=8))
TEXT = Config(
  name="tiny", model=MODEL, data=DataConfig(source="synthetic", seq_len=64, update_len=64),
  eval=EvalConfig(max_batches=2))
RECALL = dataclasses.replace(TEXT, data=DataConfig(
  source="recall", tokenizer="symbols:16", seq_len=32, update_len=32, recall=RecallConfig(pairs=4, fewest_pairs=4)))


def write_run(folder, config, seed):
  folder.mkdir()
  run = {"config": to_dict(config)}
  (folder / "run.json").write_text(json.dumps(run))
  variables = jax.jit(lambda: unbox(init_variables(config.model, jax.random.key(seed))))()
  checkpoints = Checkpoints(folder, keep_last=1)
  checkpoints.save(1, variables, run)
  checkpoints.wait()
  checkpoints.close()
  return folder


def test_windows_are_as_long_as_asked_and_measured_once(tmp_path):
  runs = [write_run(tmp_path / f"config=scalar_seed={seed}", TEXT, seed) for seed in (0, 1)]
  said = []
  found = measure(runs, [64, 256], tmp_path / "out", split="test", rows=8, report=said.append)
  assert [(line.name, line.seed, line.length, line.batch, line.trained) for line in found] == [
    ("scalar", "0", 64, 8, 64), ("scalar", "0", 256, 2, 64), ("scalar", "1", 64, 8, 64), ("scalar", "1", 256, 2, 64)]
  model = load_run(runs[1], step=None, overrides=())
  (alone,) = model.with_eval(split="test", protocol="cold", seq_len=256, chunk_len=0, batch=8, max_batches=0).evaluate()
  assert found[3].value == pytest.approx(alone.bits_per_byte, abs=1e-5) and found[3].tokens == alone.tokens
  assert found[2].tokens == alone.tokens == alone.split_tokens and found[2].value != found[3].value

  again = measure(runs, [64, 256], tmp_path / "out", split="test", rows=8, report=said.append)
  assert again == found and len((tmp_path / "out" / "lengths.jsonl").read_text().splitlines()) == 4
  plot_lengths(found, tmp_path / "lengths.png")
  assert (tmp_path / "lengths.png").stat().st_size > 10_000


def test_documents_of_recall_become_as_long(tmp_path, monkeypatch):
  monkeypatch.setitem(recall._DOCUMENTS, "test", 128)
  run = write_run(tmp_path / "recall", RECALL, 0)
  found = measure([run], [32, 128], tmp_path / "out", split="test", rows=8, report=lambda line: None)
  assert [(line.name, line.seed, line.unit) for line in found] == [("recall", "", "right answers")] * 2
  assert [line.tokens for line in found] == [128 * 4] * 2  # answers
  source, _ = lengths._at(run, 128, "test", 8).read_split("test")
  assert set(np.diff(source.offsets)) == {128} and max(source.answers.labels["distance"][:128 * 128]) > 32
  assert "Right answers" in format_lengths(found, "python")


def test_the_table_has_means_and_differences_over_seeds_best_first():
  def line(name, seed, length, value):
    return Measured(name, seed, length, 64, value, "bits per byte", "test", 1, 9, 1, "w", "c")

  found = [line("a", "0", 64, 3.0), line("a", "0", 128, 3.5), line("a", "1", 64, 3.2), line("a", "1", 128, 3.5),
           line("b", "0", 64, 2.0), line("b", "0", 128, 2.25)]
  rows = [row for row in format_lengths(found, "python").splitlines() if row.startswith("| ")]
  assert rows[1] == "| b | 2.0000 | 2.2500 | +0.2500 |"
  assert rows[2] == "| a | 3.1000 ± 0.1414 | 3.5000 ± 0.0000 | +0.4000 ± 0.1414 |"


def test_two_runs_of_one_name_are_refused(tmp_path):
  with pytest.raises(ValueError, match="have the same name and seed; give one of them"):
    measure([tmp_path / "a" / "x", tmp_path / "b" / "x"], [1], tmp_path, split="test", rows=1, report=print)
