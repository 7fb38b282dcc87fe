"""What is timed computes the same thing by its name; figures come out as lines, table and plot."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.bench import vq
from lattice_jax.bench.harness import BenchCase, measure, ratios
from lattice_jax.bench.records import format_table, records_like, write_records
from lattice_jax.files import read_jsonl

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"
MACHINE = {"device": "test", "jax": "0", "commit": "abc"}


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch):
  monkeypatch.setitem(vq.SHAPES, "tiny", vq.Shape(heads=2, kv_heads=1, key_dim=4, value_dim=4, codes=3, block=8))


def outputs(mode, length=16):
  return {case.name: jax.tree.leaves(jax.jit(case.fn)(*case.arguments)) for case in vq.cases("tiny", length, mode, 2)}


def test_forms_of_one_kind_agree_in_value_and_gradients():
  got = outputs("fwd+bwd")
  kinds = {name: "vq" if name.startswith("vq") else "softmax" for name in got}
  assert set(kinds.values()) == {"vq", "softmax"} and len(got) == len(vq.FORMS) + 3
  for kind in ("vq", "softmax"):
    first, *others = [leaves for name, leaves in got.items() if kinds[name] == kind]
    for leaves in others:
      for one, other in zip(first, leaves, strict=True):
        np.testing.assert_allclose(one.ravel(), other.ravel(), rtol=2e-4, atol=2e-5)


def test_decoding_reads_a_state_of_constant_size_or_a_cache_of_the_length():
  sizes = [
    [sum(leaf.size for leaf in jax.tree.leaves(case.arguments)) for case in vq.cases("tiny", length, "decode", 1)]
    for length in (8, 40)]
  assert sizes[0][0] == sizes[1][0] and sizes[1][1] - sizes[0][1] == 32 * (4 + 4)


def make_cases():
  x, group = jnp.ones((64, 64)), {"op": "product", "head": "none", "T": 64, "mode": "fwd"}
  return [
    BenchCase("once", group, jnp.dot, (x, x), 64),
    BenchCase("thrice", group, lambda x, y: x @ y @ y @ y, (x, x), 64)]


def test_cases_that_do_not_fit_are_reported_and_not_run(tmp_path):
  fitting, too_large = measure(make_cases(), rounds=2, max_bytes=60_000)
  assert (len(fitting.seconds), len(too_large.seconds)) == (2, 0) and too_large.temp_bytes > fitting.temp_bytes
  assert fitting.program["dot"] <= 1 < too_large.program["dot"] + too_large.program["custom-call"]
  assert dict(ratios([fitting, too_large], "once")) == {"once": (1.0, 1.0, 1.0)}
  assert list(ratios([fitting, too_large], "thrice")) == []
  assert "| thrice | does not fit |" in format_table([fitting, too_large], ["once"])
  write_records(tmp_path / "bench.jsonl", [fitting, too_large], MACHINE)
  first, second = read_jsonl(tmp_path / "bench.jsonl")
  assert first["tokens_per_second"] == pytest.approx(64 / first["median"]) and "median" not in second


def test_a_plot_holds_nothing_of_another_machine_code_or_batch_and_nothing_twice():
  one = MACHINE | {"op": "vq", "head": "mha", "mode": "fwd", "B": 1, "case": "vq", "T": 8, "median": 2.0}
  others = [one | change for change in (
    {"commit": "def"}, {"device": "other"}, {"jax": "1"}, {"B": 2}, {"mode": "fwd+bwd"}, {"head": "mqa"}, {"op": "x"})]
  longer, repeated = one | {"T": 16}, one | {"median": 1.0}
  assert records_like([one, longer, *others, repeated], repeated) == [repeated, longer]


def test_the_command_writes_lines_table_and_plot_and_a_second_run_adds_lengths(tmp_path, monkeypatch, capsys):
  main = runpy.run_path(str(SCRIPT))["main"]
  for length in (8, 16):
    monkeypatch.setattr(sys, "argv", [
      "bench.py", "vq", "--head=tiny", f"--lengths={length}", "--modes=fwd", "--cases=serial,blockwise", "--rounds=1",
      f"--out={tmp_path}"])
    main()
  assert "tiny, T = 16, fwd" in capsys.readouterr().out
  records = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
  assert [(record["T"], record["case"]) for record in records] == [
    (8, "vq serial"), (8, "softmax blockwise"), (16, "vq serial"), (16, "softmax blockwise")]
  assert (tmp_path / "tiny_fwd.png").read_bytes().startswith(b"\x89PNG")


def test_scaling_compares_lengths_of_one_case(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", [
    "bench.py", "vq", "--scaling", "--head=tiny", "--lengths=8,16", "--modes=fwd", "--cases=serial", "--rounds=2",
    f"--out={tmp_path}"])
  runpy.run_path(str(SCRIPT))["main"]()
  row = capsys.readouterr().out.splitlines()[-1].split("|")
  assert row[1:3] == [" vq serial ", " 8 → 16 "]
  assert [record["T"] for record in read_jsonl(tmp_path / "scaling.jsonl")] == [8, 16]
