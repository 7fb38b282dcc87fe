"""The slot audit from a stored run to its report."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import Config, DataConfig, ModelConfig
from lattice_jax.config_checks import to_dict
from lattice_jax.evaluation.loaded_model import load_run
from lattice_jax.inspect.slot_audit import START, audit, text_tokens
from lattice_jax.inspect.slot_inputs import lattice_layers, read_inputs
from lattice_jax.inspect.slot_report import write_html
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.lattice.op import Rule, lattice
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import unbox
from lattice_jax.types import whole_segment

MODEL = ModelConfig(
  dim=8, layers=4, pattern=("window", "lattice"), block="mlp", mlp_dim=8,
  attention=dataclasses.replace(ModelConfig().attention, heads=1, kv_heads=1, key_dim=4, value_dim=4, window=4),
  lattice=LatticeConfig(heads=2, slots=3, value_dim=4))
CONFIG = Config(name="tiny", model=MODEL, data=DataConfig(source="synthetic", seq_len=64, update_len=64))


@pytest.fixture(scope="module")
def variables():
  return jax.jit(lambda: unbox(init_variables(MODEL, jax.random.key(0))))()


@pytest.fixture(scope="module")
def loaded(variables, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  (workdir / "run.json").write_text(json.dumps({"config": to_dict(CONFIG)}))
  checkpoints = Checkpoints(workdir)
  checkpoints.save(3, variables, {"config": to_dict(CONFIG)})
  checkpoints.wait()
  checkpoints.close()
  return load_run(workdir, step=None, overrides=[])


def test_inputs_of_stacked_layers_are_those_that_lead_to_the_models_state(variables):
  tokens_T = np.arange(12) + 3
  inputs = read_inputs(MODEL, variables["params"], variables["buffers"], tokens_T)
  assert list(inputs) == lattice_layers(MODEL) == [1, 3]
  output = jax.jit(lambda: Decoder(MODEL).apply(
    variables, jnp.asarray(tokens_T)[None], init_state(MODEL, 1), whole_segment(1, 12)))()
  for n, layer in enumerate((1, 3)):
    memory = jax.tree.map(lambda x, n=n: x[n], output.state["block_1"].memory)
    given = inputs[layer]
    empty = jax.tree.map(lambda x, n=n: x[n], init_state(MODEL, 1)["block_1"].memory)
    _, state = lattice(
      given.k_THM[None], given.k_THM[None], given.v_THV[None], given.step_TH[None], None, given.start_HMV, empty,
      jnp.zeros((1, 12), jnp.int32), jnp.ones((1, 12), bool), rule=Rule())
    np.testing.assert_allclose(state.slots.unit_BHMV, memory.slots.unit_BHMV, atol=1e-5)


def test_training_and_evaluation_keep_no_inputs(variables):
  def read(variables):
    return Decoder(MODEL).apply(
      variables, jnp.ones((1, 2), jnp.int32), init_state(MODEL, 1), whole_segment(1, 2), mutable=["buffers"])[1]

  assert "intermediates" not in jax.eval_shape(read, variables) and set(variables) == {"params", "buffers"}


@pytest.mark.thorough
def test_the_report_holds_everything_and_needs_nothing(loaded, tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("to be & <not>\nto be")
  where, ids = text_tokens(loaded, text, "test", 0, 1000)
  data, page = audit(loaded, where, ids, tmp_path / "out", threshold=0.1, top=2)
  content = json.loads(data.read_text())
  assert content["tokens"] == [START, *"to be & <not>\nto b"] and content["step"] == 3
  assert [layer["name"] for layer in content["layers"]] == ["layer 1", "layer 3"]
  for layer in content["layers"]:
    assert np.shape(layer["turn_THM"]) == np.shape(layer["age_THM"]) == (19, 2, 3)
    assert np.shape(layer["rank_TH"]) == (19, 2) and np.shape(layer["similarity_HMM"]) == (2, 3, 3)
    assert len(layer["slots"]) == 6 and all(len(slot["top"]) == 2 for slot in layer["slots"])
    for slot in layer["slots"]:
      age = np.asarray(layer["age_THM"])[-1, slot["head"], slot["slot"]]
      assert slot["age"] == age
  html = page.read_text()
  pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
  assert len(pictures) == 12 and html.count("data:image/png;base64,") == 12
  assert set(re.findall(r"(?:src|href|url)\W+(\w+:)", html)) == {"data:"}, "the report points outside itself"
  linked, parts = re.findall(r"href='#([^']+)'", html), re.findall(r"id='?([\w-]+)", html)
  assert set(linked) <= set(parts) and len(set(parts)) == len(parts)
  for layer in ("layer-1", "layer-3"):
    assert {layer, f"{layer}-heads", f"{layer}-writes", f"{layer}-similarity", f"{layer}-slots"} <= set(linked)
  assert html.index("turns a slot by 0.1 radians") < html.index("Contents") < html.index("id='layer-1'")
  assert "&lt;" in html and "<not>" not in html and "↵" in html


def test_a_document_of_the_runs_data_is_cut_to_what_is_asked(loaded):
  where, ids = text_tokens(loaded, None, "test", 2, 50)
  assert (where, len(ids)) == ("synthetic, test, document 2", 50)
  assert len(text_tokens(loaded, None, "test", 1, 50)[1]) == 1


@pytest.mark.parametrize(("text", "document", "message"), [
  ("missing", 0, "missing cannot be read: No such file or directory; give a text file with --text"),
  ("empty", 0, "empty is empty; give a text with --text"),
  (None, 99, "document 99 is not one of the 48 of synthetic test; use --document=0")])
def test_a_text_that_is_not_there_is_refused(loaded, tmp_path, text, document, message):
  (tmp_path / "empty").write_text("")
  with pytest.raises(ValueError, match=message):
    text_tokens(loaded, text and tmp_path / text, "test", document, 10)


def test_a_model_without_slots_is_refused():
  with pytest.raises(ValueError, match=r"model\.pattern=window,vq has no memory with slots to audit"):
    lattice_layers(dataclasses.replace(MODEL, pattern=("window", "vq")))


def test_text_cannot_break_the_page(tmp_path):
  write_html(tmp_path / "x.html", {"run": "<b>", "threshold": 0.1}, [])
  assert "<b>" not in (tmp_path / "x.html").read_text()
