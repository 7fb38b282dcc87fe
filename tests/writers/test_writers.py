"""metrics.jsonl neither loses nor doubles a line, progress lines are aligned, and what cannot be written is said."""

from __future__ import annotations

import json
import math
import sys

import pytest

from lattice_jax import writers
from lattice_jax.files import read_jsonl
from lattice_jax.writers import RunInfo, Writers
from lattice_jax.writers.base import series
from lattice_jax.writers.jsonl import JsonlWriter
from lattice_jax.writers.stdout import StdoutWriter

REPORT = {
  "step": 7, "total": 100, "loss": 1.25, "bits_per_byte": 1.8, "grad_norm": 0.5, "tokens_per_second": 12345.0,
  "time_data_wait": 0.015, "mfu": 0.3, "time_left": 3725.0}
EVALUATION = {
  "step": 7, "split": "test", "protocol": "cold", "bits_per_byte": 1.5, "nll_per_token": 1.0, "tokens": 9,
  "time_eval": 0.1}


def test_resumed_file_keeps_whole_lines_up_to_the_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  first = [
    {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "split": "validation", "protocol": "cold"},
    {"step": 3, "loss": 1.0}]
  path.write_text("".join(json.dumps(record) + "\n" for record in first) + '{"step": 4, "lo')
  writer = JsonlWriter(path, 2)
  writer.update({"step": 3, "loss": 0.9})
  writer.close()
  assert read_jsonl(path) == [*first[:3], {"step": 3, "loss": 0.9}]


def test_flushed_lines_are_on_disk_and_not_finite_ones_are_json(tmp_path):
  writer = JsonlWriter(tmp_path / "metrics.jsonl", 0)
  writer.update({"step": 1, "loss": math.nan})
  writer.flush()
  assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'
  writer.close()


def test_progress_lines_are_aligned(capsys):
  writer = StdoutWriter("byte")
  writer.report(REPORT)
  changes = {"step": 100, "loss": 11.5, "tokens_per_second": 5.0, "time_data_wait": 1.0, "grad_norm": 12.0}
  writer.report(REPORT | changes)
  one, two = capsys.readouterr().out.splitlines()
  assert len(one) == len(two)
  assert one.startswith("step   7/100  loss") and one.endswith("eta 1:02:05")


def test_images_are_counted_in_dims(capsys):
  writer = StdoutWriter("dim")
  writer.report(REPORT)
  writer.evaluation(EVALUATION | {"word_perplexity": 123.456})
  writer.evaluation(EVALUATION | {"accuracy": 0.975})
  one, two, three = capsys.readouterr().out.splitlines()
  assert "bits/dim   1.8000" in one and "bits/byte" not in one
  assert "bits/dim 1.5000, 123.46 word perplexity over 9 tokens (cold)" in two
  assert "bits/dim 1.5000, 97.50% right over 9 answers (cold)" in three


def test_curves_have_the_unit_in_their_name_and_only_numbers():
  record = REPORT | {"mfu": None, "loss": math.nan}
  assert set(series(record, "dim")) == {
    "train/bits_per_dim", "train/grad_norm", "train/tokens_per_second", "train/time_data_wait", "train/time_left"}
  assert set(series(EVALUATION, "byte")) == {
    "eval_test_cold/bits_per_byte", "eval_test_cold/nll_per_token", "eval_test_cold/tokens", "eval_test_cold/time_eval"}


def test_unknown_writer_names_those_there_are(tmp_path):
  with pytest.raises(ValueError, match="known writers: stdout, jsonl, tensorboard, wandb"):
    Writers(("stduot",), RunInfo(tmp_path, 0, {}))


def test_full_disk_is_one_sentence_and_closing_adds_none(tmp_path, monkeypatch):
  class Full(writers.Writer):
    def report(self, record):
      raise OSError(28, "No space left on device")

    def close(self, status):
      raise OSError(28, "No space left on device")

  monkeypatch.setitem(writers.WRITERS, "full", lambda info: Full())
  full = Writers(("full",), RunInfo(tmp_path, 0, {}))
  with pytest.raises(ValueError, match=r"No space left on device.*continues from the newest checkpoint"):
    full.report(REPORT)
  full.close()


def test_what_takes_long_is_a_line_in_a_log_and_a_clock_on_a_terminal(capsys, monkeypatch):
  writer = StdoutWriter("byte")
  with writer.busy("compiling"):
    writer.note("said meanwhile")
  assert capsys.readouterr().out == "compiling …\nsaid meanwhile\n"
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  with pytest.raises(KeyboardInterrupt), writer.busy("compiling"):
    writer.note("said meanwhile")
    raise KeyboardInterrupt
  writer.note("after")
  said = capsys.readouterr().out
  assert "\r\033[Kcompiling … 0 s" in said and "\r\033[Ksaid meanwhile\n" in said
  assert said.endswith("\r\033[Kafter\n")
