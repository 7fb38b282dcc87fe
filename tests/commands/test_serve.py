"""From arguments to engines that run: which models stand behind the front, and with how much room."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import socket
import sys
from pathlib import Path

import jax
import pytest

from lattice_jax.commands import serve
from lattice_jax.commands.serve_rollout import FLAGS
from lattice_jax.config import Config, DataConfig, MeshConfig
from lattice_jax.config_text import apply_overrides
from lattice_jax.evaluation import loaded_model
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.rollout.live import LiveRollout
from lattice_jax.inference.serving import engine, server
from lattice_jax.inference.serving.request import EngineOptions
from lattice_jax.inference.serving.routing import CONTROL, TREATMENT, FixedRouter, Route
from lattice_jax.sharding import make_mesh
from tests.inference.serving.small import MODEL, make_variables


@pytest.fixture
def run(monkeypatch):
  """Stands in for a stored run, whose folder decides its tokenizer."""
  def load(workdir, *, step, overrides):
    config = Config(name="small", model=MODEL, data=DataConfig(
      source="synthetic", tokenizer="symbols:256" if workdir.name == "other" else "bytes", seq_len=32, update_len=32))
    return LoadedModel(
      workdir=workdir, config=apply_overrides(config, overrides), overrides=tuple(overrides),
      params=make_variables()["params"], buffers=make_variables()["buffers"], step=step or 3,
      mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))

  monkeypatch.setattr(loaded_model, "load_run", load)


def given(**changes):
  arguments = {
    "pretrained": None, "workdir": Path("run"), "step": None, "dtype": None, "set": [], "cache": None,
    "treatment": None, "treatment_workdir": None, "share": None, "shadow": False, "name": None, "rows": 3,
    "max_len": None, "chunk_len": 4, "chunks": 1, "block_len": 1, "queue": 8, "host": "127.0.0.1", "port": 0,
    "grace": 0, "treatment_set": [], "rollout": None, **FLAGS}
  return argparse.Namespace(**arguments | changes)


class Engine(engine.Engine):
  """Keeps what it was made of, and compiles nothing."""

  rows_in_use, queue_len, is_alive = 0, 0, True

  def __init__(self, model, variables, options, **facts):
    self.model, self.variables, self.options, self.facts, self.calls = model, variables, options, facts, []
    self.row_bytes = self.cache_bytes = 0

  def start(self):
    self.calls.append("start")

  def close(self, *, abort):
    self.calls.append(f"close {abort}")

  def join(self, seconds):
    self.calls.append("join")


def test_two_arms_that_differ_by_their_caches_share_their_weights(run, monkeypatch, capsys):
  monkeypatch.setattr(engine, "Engine", Engine)
  front = serve.make_front(given(
    max_len=64, treatment="window:tokens=8,sinks=1", share=0.25, name="served", set=["model.impl=xla"]))
  front.metrics.close()
  control, treatment = front.arms[CONTROL], front.arms[TREATMENT]
  assert front.name == "served" and front.router == FixedRouter(share=0.25)
  assert control.model.cache.policy == "full" and treatment.model.cache.policy == "window"
  assert control.model.impl == treatment.model.impl == "xla" and control.calls == treatment.calls == ["start"]
  assert control.options == treatment.options == EngineOptions(rows=3, max_len=64, chunk_len=4, queue=8)
  assert control.variables["params"] is treatment.variables["params"]
  assert control.facts["banned"] == (0, 1, 2) and control.facts["stop_ids"] == () and control.facts["marker"] is None
  assert "treatment: small (run) at step 3, model.impl=xla, model.cache.policy=window" in capsys.readouterr().out
  shadow = serve.make_front(given(treatment="sep:keep=4", shadow=True))
  shadow.metrics.close()
  assert shadow.router == FixedRouter(share=1.0, shadow=True) and shadow.name == "small"
  assert shadow.arms[CONTROL].facts["marker"] is None and shadow.arms[TREATMENT].facts["marker"] is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order_and_nothing_else(run, monkeypatch, capsys, number):
  made, before, asked = [], signal.getsignal(number), []
  monkeypatch.setattr(engine, "Engine", lambda *given, **facts: made.append(Engine(*given, **facts)) or made[-1])

  def ready(port):
    with socket.create_connection(("127.0.0.1", port)) as connection:
      asked.append(connection.getpeername()[1])
    os.kill(os.getpid(), number)

  serve.run(given(grace=9), ready)
  assert made[0].calls == ["start", "close True", "join"] and signal.getsignal(number) is before
  *_, listening, stopped = capsys.readouterr().out.splitlines()
  assert listening == f"listening on http://127.0.0.1:{asked[0]}; the model is called small" and stopped == "stopped."


def test_an_address_that_is_taken_is_told_before_a_model_is_loaded():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(OSError) as refused:
      serve.run(given(port=port))
  assert refused.value.filename == f"127.0.0.1:{port}" and "in use" in refused.value.strerror


def test_room_is_what_the_model_was_made_for(run):
  loaded = loaded_model.load_run(Path("run"), step=None, overrides=[])
  assert serve._context(None, [loaded]) == 32 and serve._context(100, [loaded]) == 100
  pretrained = dataclasses.replace(loaded, context_len=8192)
  assert serve._context(None, [pretrained, loaded]) == 2048 and serve._context(8192, [pretrained]) == 8192
  with pytest.raises(ValueError, match=r"--max_len=8,193 is more than the 8,192 tokens that the model was made for"):
    serve._context(8193, [loaded, pretrained])


def test_arms_must_read_the_same_ids(run):
  arms = serve.load_arms(given(treatment_workdir=Path("another"), treatment="knorm:keep=8"))
  assert arms[TREATMENT].workdir.name == "another" and arms[TREATMENT].config.model.cache.policy == "knorm"
  assert arms[CONTROL].config.model.cache.policy == "full"
  with pytest.raises(ValueError, match=r"the treatment in other has another tokenizer than control"):
    serve.load_arms(given(treatment_workdir=Path("other")))
  changed = serve.load_arms(given(
    set=["model.impl=xla"], treatment_set=["model.attention.window=8"], cache="knorm:keep=8"))
  assert [arm.config.model.attention.window for arm in changed.values()] == [0, 8]
  assert {(arm.config.model.impl, arm.config.model.cache.policy) for arm in changed.values()} == {("xla", "knorm")}


ROLLOUT = {
  "treatment": "window:tokens=8,sinks=1", "prompts": "synthetic", "prompt_len": 20, "scored_len": 6, "canary_len": 120,
  "rollout_set": ["stages=shadow,5"], "max_len": 192}


def test_a_rollout_stands_behind_the_front_and_goes_on_in_its_folder(run, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(engine, "Engine", Engine)
  monkeypatch.setattr(LiveRollout, "start", lambda self: None)
  asked = given(**ROLLOUT, rollout=tmp_path / "run", inject=0.05, score_queue=7, canary_every=2)
  front = serve.make_front(asked)
  live = front.router
  assert live.route("a").shadows == (TREATMENT,) and (live._room, live._scored_len, live._canary_every) == (7, 6, 2)
  arms = live._arms
  assert [(arm.inject, arm.model.cache.policy) for arm in arms.values()] == [(0.0, "full"), (0.05, "window")]
  assert {(arm.max_len, arm.chunk_len) for arm in arms.values()} == {(192, 4)}
  assert all(arms[name].variables["params"] is front.arms[name].variables["params"] for name in arms)
  assert "run → window:tokens=8,sinks=1" not in front.page() and "small → window:tokens=8,sinks=1" in front.page()
  assert 'lattice_rollout_stage{stage="shadow"} 1.0' in front.metrics.text().decode()
  front.metrics.close()
  live.close()
  assert (tmp_path / "run" / "dashboard.html").is_file()
  assert f"rollout starts in {tmp_path / 'run'}: running, stage shadow," in capsys.readouterr().out
  with pytest.raises(ValueError, match=r"is of a rollout with inject=0.05, not 0.1; give the same"):
    serve.make_front(given(**ROLLOUT, rollout=tmp_path / "run", inject=0.1, canary_every=2))
  with pytest.raises(ValueError, match=r"the longest recorded unit or canary has \d+ tokens, and a row 64; use a"):
    serve.make_front(given(**ROLLOUT | {"max_len": 64}, rollout=tmp_path / "run"))


def test_units_keep_their_arm_and_a_larger_share_takes_none_back():
  units = [f"user {n}" for n in range(4000)]
  few, many = FixedRouter(share=0.1), FixedRouter(share=0.3)
  treated = {unit for unit in units if few.route(unit) == Route(TREATMENT)}
  assert treated < {unit for unit in units if many.route(unit) == Route(TREATMENT)}
  assert abs(len(treated) - 400) < 100 and {few.route(unit).arm for unit in units} == {CONTROL, TREATMENT}
  shadow = FixedRouter(share=0.1, shadow=True)
  assert {unit for unit in units if shadow.route(unit) == Route(CONTROL, (TREATMENT,))} == treated
  assert {FixedRouter(share=1.0).route(unit).arm for unit in units} == {TREATMENT}


def test_what_serving_needs_is_named_where_it_is_not_installed(monkeypatch):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  monkeypatch.delitem(sys.modules, server.__name__)
  monkeypatch.delattr(sys.modules["lattice_jax.inference.serving"], "server")
  with pytest.raises(ValueError, match=r"serving needs the package uvicorn; install what pyproject\.toml lists under"):
    serve.run(given())
