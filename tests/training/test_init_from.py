"""A run that starts from another model: a pretrained one, of which it takes shape and tokenizer too, or another run."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys

import jax
import numpy as np
import pytest

from configs import finetune
from lattice_jax.checkpoint import load_for_eval
from lattice_jax.config import DataConfig
from lattice_jax.config_checks import parse_config
from lattice_jax.data.tokenizers.export import export_tokenizer
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer
from lattice_jax.evaluation.loaded_model import load_pretrained_model, load_run
from lattice_jax.files import read_jsonl
from lattice_jax.memories.local.config import SummaryConfig
from lattice_jax.memories.local.maps import map_shapes
from lattice_jax.memories.local.maps_file import FittedMaps, write_maps
from lattice_jax.models.pretrained import load_pretrained, open_pretrained
from lattice_jax.run_file import read_run
from lattice_jax.sharding import make_mesh
from lattice_jax.training import loop
from lattice_jax.training.init_from import complete, load_start
from lattice_jax.training.state import abstract_state, create_state
from tests.models.tiny_files import LLAMA, WINDOW, make_tensors, write_folder, write_gguf
from tests.training.tiny import assert_same_bits

SMALL = LLAMA | {"vocab_size": 259, "num_hidden_layers": 1}


@pytest.fixture
def folder(tmp_path):
  return write_model(tmp_path / "model")


def write_model(folder, config=SMALL):
  """Weights, config and a tokenizer of bytes, as `transformers` keeps them."""
  write_folder(folder, config, make_tensors(config))
  export_tokenizer(ByteTokenizer(), DataConfig(), folder)
  return folder


def finetuning(tmp_path, **fields):
  """configs/finetune.py on a text, small, with fields changed by their full names."""
  (tmp_path / "book.txt").write_text("".join(f"Line {number} of a book.\n" for number in range(200)))
  config = finetune.get_config()
  small = {
    "data.source": f"text:{tmp_path / 'book.txt'}", "data.seq_len": 16, "data.update_len": 16, "data.batch": 8,
    "train.steps": 12, "train.log_every": 1, "train.writers": ("jsonl",), "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 2, "eval.max_batches": 1}
  for name, value in (small | fields).items():
    section, _, field = name.rpartition(".")
    part = config
    for key in section.split("."):
      part = part[key]
    part[field] = value
  return parse_config(config)


def test_the_model_and_its_tokenizer_come_from_the_file_and_the_rest_from_the_config(tmp_path, folder):
  config = finetuning(tmp_path, **{"model.dtype": "bfloat16", "model.dropout": 0.1, "model.xent_chunk": 32})
  completed = complete(config, str(folder))
  pretrained = open_pretrained(folder)
  assert completed.model == dataclasses.replace(
    pretrained.model, context_len=64, dtype="bfloat16", dropout=0.1, xent_chunk=32)
  assert completed.data == dataclasses.replace(config.data, tokenizer=f"pretrained:{folder}")
  assert completed.train == config.train and completed.optimizer == config.optimizer
  assert complete(completed, str(folder)) == completed, "a config that says all of it is taken as it is"


def test_windows_of_the_file_are_kept(tmp_path):
  mistral = SMALL | WINDOW | {"model_type": "mistral"}
  completed = complete(finetuning(tmp_path), write_model(tmp_path / "mistral", mistral))
  assert completed.model.pattern == ("window",) and completed.model.attention.window == 5


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_parameters_are_those_of_the_file_placed_as_training_needs_them(tmp_path, folder, kind):
  name = folder
  if kind == "gguf":
    name, _ = write_gguf(tmp_path / "model.gguf", SMALL, make_tensors(SMALL))
  config = finetuning(tmp_path)
  model = dataclasses.replace(open_pretrained(name).model, dtype="bfloat16")
  config = dataclasses.replace(config, model=model, mesh=dataclasses.replace(config.mesh, model=2))
  mesh = make_mesh(config.mesh)
  abstract = abstract_state(config, mesh)
  given, origin = load_start(config, name, abstract)
  assert origin == f"from the pretrained model {name}"
  state, fresh = create_state(config, mesh, given), create_state(config, mesh)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), abstract)
  assert len({shard.device for shard in jax.tree.leaves(state.params)[0].addressable_shards}) == 8
  assert_same_bits(state.params, load_pretrained(name)[1])
  assert_same_bits(state.opt_state, fresh.opt_state)


def test_fitted_maps_of_features_come_from_their_file_and_a_run_of_its_own_takes_none(tmp_path, folder):
  attention, summary = open_pretrained(folder).model.attention, SummaryConfig(features=2, hidden=3)
  rng, path = np.random.default_rng(0), tmp_path / "maps.safetensors"
  arrays = {name: rng.normal(size=(1, *shape)) for name, shape in map_shapes(attention, summary).items()}
  facts = {"model": "model", "weights": open_pretrained(folder).digest, "features": 2, "hidden": 3}
  write_maps(path, FittedMaps(arrays, facts))
  config = complete(finetuning(tmp_path, **{
    "model.pattern": ("local",), "model.local.far": "features", "model.local.maps": str(path),
    "model.local.summary.features": 2, "model.local.summary.hidden": 3}), str(folder))
  abstract = abstract_state(config, make_mesh(config.mesh))
  params = load_start(config, folder, abstract)[0]["params"]
  found = params["groups"]["block_0"]["memory"]
  assert found.keys() >= arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], np.float32(array))
  with pytest.raises(ValueError, match=r"model\.local\.maps=.* holds parameters that a pretrained model lacks, and"):
    load_start(config, None, abstract)


def test_a_finetuned_model_learns_is_scored_writes_and_is_exported(tmp_path, folder, monkeypatch, capsys):
  workdir = tmp_path / "run"
  config = finetuning(tmp_path)
  state = loop.train(config, workdir, init_from=str(folder))
  assert_same_bits(loop.train(config, workdir, init_from=str(folder)).params, state.params)
  losses = [line["loss"] for line in read_jsonl(workdir / "metrics.jsonl") if "loss" in line]
  assert losses[-1] < losses[0] - 0.3
  stored = read_run(workdir)["config"]
  assert stored["data"]["tokenizer"] == f"pretrained:{folder}" and stored["model"]["context_len"] == 64
  again = complete(config, workdir)
  assert again == complete(config, str(folder)), "a run of this kind is a start like the model that it started from"
  given, origin = load_start(again, workdir, abstract_state(again, make_mesh(config.mesh)))
  assert_same_bits(given["params"], state.params)
  assert origin == f"from the parameters of {workdir} at step 12"
  loaded = load_run(workdir, step=None, overrides=())
  with pytest.raises(ValueError, match=r"windows of 65 tokens are more than the 64 that finetune was made for"):
    loaded.with_eval(seq_len=65)
  (result,) = loaded.with_eval(split="test", protocol="cold").evaluate()
  assert result.tokenizer == f"pretrained:{folder}" and np.isfinite(result.bits_per_byte)
  assert loaded.write_texts(["Line "], length=100, temperature=0.0)[0].finishes == ("context",)
  monkeypatch.setattr(sys, "argv", ["export.py", f"--workdir={workdir}", f"--output={tmp_path / 'out'}"])
  runpy.run_path("scripts/export.py", run_name="__main__")
  assert "tokenizer.json" in capsys.readouterr().out
  assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 64
  assert_same_bits(load_pretrained(tmp_path / "out")[1], load_for_eval(workdir)[1])


@pytest.mark.parametrize(("fields", "message"), [
  ({"model.dim": 64}, r"^model.dim=64 is not what the model of --init_from=\S+ has, 32; leave it out with --config="),
  ({"model.pattern": ("lattice",)}, r"^model.pattern names 'lattice', whose parameters a pretrained model .* lacks"),
  ({"model.pattern": ("anchor",) * 4}, r"^model.pattern names 4 layers, which do not divide the model's 1; name one"),
  ({"model.attention.rope_theta": 7.0}, r"^model.attention.rope_theta=7.0 is not what .* has, 100.0; leave it out"),
  ({"model.origin": "config"}, r"^model.dim=128 is not what the model of --init_from=\S+ has, 32; leave it out with "),
  ({"data.tokenizer": "bpe_lossless:300"}, r"^data.tokenizer=bpe_lossless:300 is not that of --init_from=\S+; use"),
  ({"data.seq_len": 128, "data.update_len": 128}, r"^data.seq_len=128 is more than the 64 tokens that the model was "),
  ({"eval.seq_len": 128}, r"^eval.seq_len=128 is more than the 64 tokens that the model was made for; use at most as"),
], ids=str)
def test_what_does_not_fit_is_one_sentence(tmp_path, folder, fields, message):
  with pytest.raises(ValueError, match=message) as caught:
    loop.train(finetuning(tmp_path, **fields), tmp_path / "run", init_from=folder)
  assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "message"), [
  (None, r"^this config takes its model from --init_from, which is missing; name smollm2, a folder of safetensors, "),
  ("nothing", r"^--init_from=nothing must be smollm2, a folder of safetensors, a .gguf file or the workdir of a run: "),
])
def test_a_start_that_is_not_there_is_one_sentence(tmp_path, name, message):
  with pytest.raises(ValueError, match=message):
    loop.train(finetuning(tmp_path), tmp_path / "run", init_from=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("start", ["mean", "<eos>"])
def test_an_added_anchor_gets_a_row_of_its_own(tmp_path, start, tied):
  folder = write_model(tmp_path / "model", SMALL | {"tie_word_embeddings": tied})
  config = complete(
    finetuning(tmp_path, **{"data.anchors.insert": "sentence", "data.anchors.start": start, "mesh.model": 2}), folder)
  assert config.model.vocab == 260 and open_pretrained(folder).model.vocab == 259
  mesh = make_mesh(config.mesh)
  abstract = abstract_state(config, mesh)
  params = load_start(config, folder, abstract)[0]["params"]
  assert jax.tree.map(lambda leaf: leaf.sharding, params) == jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
  theirs = load_pretrained(folder)[1]
  rows, old = [np.asarray(tree["embedding"]) for tree in (params, theirs)]
  if not tied:
    rows, old = (np.concatenate([ours, np.asarray(tree["head"]).T], axis=1) for ours, tree in (
      (rows, params), (old, theirs)))
  np.testing.assert_array_equal(rows[:259], old)
  np.testing.assert_allclose(rows[259], old.mean(0) if start == "mean" else old[1], rtol=1e-5, atol=1e-6)


def test_an_added_anchor_without_a_row_is_refused(tmp_path, folder):
  config = complete(finetuning(tmp_path, **{"data.anchors.insert": "sentence", "data.anchors.start": "no"}), folder)
  with pytest.raises(ValueError, match=r"data.anchors.start=no: data.tokenizer=\S+ has no such token; use mean"):
    load_start(config, folder, abstract_state(config, make_mesh(config.mesh)))
  with pytest.raises(ValueError, match="adds the token <AC>, for which this model of 259 tokens has no embedding"):
    load_pretrained_model(str(folder), workdir=None, dtype="float32", overrides=["data.anchors.insert=sentence"])


@pytest.mark.thorough
def test_a_model_that_learned_an_added_anchor_reads_and_writes_it(tmp_path, folder):
  config = finetuning(tmp_path, **{"data.anchors.insert": "sentence", "data.anchors.rule": "token:<AC>"})
  loop.train(config, tmp_path / "run", init_from=str(folder))
  loaded = load_run(tmp_path / "run", step=None, overrides=())
  assert loaded.config.model.vocab == 260 and loaded.marker.class_A.nonzero()[0].tolist() == [259]
  (result,) = loaded.with_eval(split="test", protocol="cold").evaluate()
  assert np.isfinite(result.bits_per_byte)
  assert loaded.write_texts(["Line. "], length=4, temperature=0.0)[0].num_tokens == (4,)
