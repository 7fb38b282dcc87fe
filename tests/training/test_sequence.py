"""Training and evaluation with the tokens of rows on several devices: nothing but rounding tells it from one device."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from lattice_jax.config import MeshConfig
from lattice_jax.config_checks import check_config
from lattice_jax.evaluation.evaluator import evaluate
from lattice_jax.sharding import make_mesh, reader_among, sorted_by_process
from lattice_jax.training import loop
from tests.training import tiny
from tests.training.tiny import make_config, run_updates

SEQ = MeshConfig(data=2, seq=2)


def on_shards(config, mesh=SEQ):
  return dataclasses.replace(config, mesh=mesh)


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_runs_close(got, want):
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose([line[name] for line in got], [line[name] for line in want], rtol=2e-5, err_msg=name)


def test_a_run_on_shards_and_its_resumption_on_one_device_equal_one_on_one_device(tmp_path, monkeypatch):
  config = make_config(train__steps=4, train__save_every=2, model__dropout=0.1)
  monkeypatch.setattr(loop, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:4 if mesh.seq > 1 else 1]))
  loop.train(config, tmp_path / "one")
  first = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
  loop.train(on_shards(first), tmp_path / "two")
  loop.train(config, tmp_path / "two")
  want = lines(tmp_path / "one")
  got = lines(tmp_path / "two")
  assert_runs_close(*([line for line in run if "loss" in line] for run in (got, want)))
  (*_, score), (*_, same) = ([line for line in run if "split" in line] for run in (got, want))
  assert score["bits_per_byte"] == pytest.approx(same["bits_per_byte"], rel=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("model", [1, 2])
def test_a_hybrid_carries_all_its_memories_across_shards(model):
  """With heads on further devices, shards without a group of rows must come to collectives too."""
  config = make_config(model__pattern=("lattice", "window", "gla"), model__layers=3)
  config = dataclasses.replace(config, model=dataclasses.replace(
    config.model, attention=dataclasses.replace(config.model.attention, window=5)))
  _, want = run_updates(config, 3)
  mesh = MeshConfig(data=2, seq=2, model=model)
  _, got = run_updates(on_shards(config, mesh), 3, devices=jax.devices()[:4 * model])
  assert_runs_close(got, want)


@pytest.mark.thorough
def test_bfloat16_is_trained_on_shards():
  config = make_config(model__dtype="bfloat16")
  _, want = run_updates(config, 2)
  _, got = run_updates(on_shards(config), 2, devices=jax.devices()[:4])
  np.testing.assert_allclose([line["loss"] for line in got], [line["loss"] for line in want], rtol=2e-2)


@pytest.mark.parametrize(("changes", "sentence"), [
  ({"model__pattern": ("gla",), "data__update_len": 24}, "cannot share data.update_len=24 tokens evenly"),
  ({"model__pattern": ("window",), "data__update_len": 20}, "reaches back 12 tokens, and mesh.seq=5 gives each"),
  ({"data__update_len": 60}, "does not divide data.update_len=60 over mesh.seq=5"),
], ids=["tokens", "reach", "block"])
def test_updates_that_shards_cannot_share_are_refused(changes, sentence):
  config = make_config(data__seq_len=changes["data__update_len"], **changes)
  attention = dataclasses.replace(config.model.attention, window=12)
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=attention))
  with pytest.raises(ValueError, match=sentence):
    check_config(on_shards(config, MeshConfig(seq=5)))


def test_a_token_cache_is_refused_on_shards():
  config = make_config(model__pattern=("attention",), data__update_len=32)
  mesh = make_mesh(SEQ, jax.devices()[:4])
  state, _ = run_updates(on_shards(config), 0, devices=jax.devices()[:4])
  data = tiny.load_source(config.data, "validation")
  with pytest.raises(ValueError, match="token caches cannot be read and written by tokens that lie on several devices"):
    evaluate(
      config.model, state.params, state.buffers, data, loop.open_data(config).tokenizer,
      eval=dataclasses.replace(config.eval, protocol="carried"), data=config.data, mesh=mesh)


@pytest.mark.parametrize(("processes", "readers"), [
  ([[0], [0], [1], [1]], [(0, 2), (1, 2)]),
  ([[0, 1], [2, 3]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
  ([[0, 0, 1, 1]], [(0, 1), (0, 1)]),
], ids=["rows", "tokens", "all"])
def test_processes_that_share_rows_read_the_same_ones(processes, readers):
  assert [reader_among(processes, process) for process in range(len(readers))] == readers


def test_processes_that_share_only_some_rows_are_refused():
  with pytest.raises(ValueError, match="some rows in common and others apart"):
    reader_among([[0], [0, 1], [1]], 0)


def test_windows_that_cannot_be_split_are_padded():
  config = make_config(data__seq_len=16)
  state, _ = run_updates(config, 0)
  data = tiny.load_source(config.data, "validation")

  def bits(mesh):
    return evaluate(
      config.model, state.params, state.buffers, data, loop.open_data(config).tokenizer,
      eval=dataclasses.replace(config.eval, seq_len=13, batch=4), data=config.data, mesh=mesh).bits_per_byte

  assert bits(make_mesh(SEQ, jax.devices()[:4])) == pytest.approx(bits(None), rel=1e-5)


def test_a_way_through_the_machine_that_comes_back_to_a_host_is_put_in_its_hosts_order():
  assert sorted_by_process([[2], [0], [1], [0], [2]]) == [0, 4, 1, 3, 2]  # a torus: 2 and 0 are left and met again
  assert sorted_by_process([[0, 1], [2, 3], [1, 0], [3, 2]]) == [0, 2, 1, 3]  # rows that two processes share
  assert sorted_by_process([[0], [0], [1]]) == [0, 1, 2]
  way = [[2], [0], [1], [0], [2], [1]]
  with pytest.raises(ValueError, match="some rows in common"):
    reader_among(way, 0)
  assert [reader_among([way[place] for place in sorted_by_process(way)], process) for process in (2, 0, 1)] == [
    (0, 3), (1, 3), (2, 3)]
