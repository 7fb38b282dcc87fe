"""Ratios, and a metrics.jsonl that neither loses nor doubles a line."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import pytest

from lattice_jax.metrics import JsonlWriter, StdoutWriter, Writers, bits_per_byte, ratio, read_jsonl

REPORT = {
  "step": 7, "total": 100, "loss": 1.25, "bits_per_byte": 1.8, "grad_norm": 0.5, "tokens_per_second": 12345.0,
  "time_data_wait": 0.015, "mfu": 0.3, "time_left": 3725.0}


def test_ratio_of_nothing_is_zero():
  assert ratio((jnp.asarray(3.0), jnp.asarray(4.0))) == 0.75
  assert ratio((jnp.asarray(0.0), jnp.asarray(0.0))) == 0.0


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight():
  assert bits_per_byte(math.log(256), tokens_per_byte=1.0) == pytest.approx(8.0)


def test_resumed_file_keeps_whole_lines_up_to_the_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  first = [
    {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "split": "validation"}, {"step": 3, "loss": 1.0}]
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
  writer = StdoutWriter()
  writer.report(REPORT)
  changes = {"step": 100, "loss": 11.5, "tokens_per_second": 5.0, "time_data_wait": 1.0, "grad_norm": 12.0}
  writer.report(REPORT | changes)
  one, two = capsys.readouterr().out.splitlines()
  assert len(one) == len(two)
  assert one.startswith("step   7/100  loss") and one.endswith("eta 1:02:05")


def test_unknown_writer_names_those_there_are(tmp_path):
  with pytest.raises(ValueError, match="known writers: stdout, jsonl"):
    Writers(("stduot",), tmp_path, 0)
