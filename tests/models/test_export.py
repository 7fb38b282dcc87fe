"""What is exported comes back as the same model, and a model that the family has not is refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lattice_jax.config import Config, ModelConfig
from lattice_jax.config_checks import parse_config, to_dict
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.models.pretrained import load_pretrained
from lattice_jax.models.pretrained.export import export_model
from lattice_jax.ops.rotary_config import RopeScalingConfig
from lattice_jax.sharding import unbox
from tests.models.numpy_llama import logits as numpy_logits
from tests.models.test_pretrained import TOKENS, assert_equal_trees, our_logits
from tests.models.tiny_files import LLAMA, QWEN2, WINDOW, make_tensors, write_folder

OURS = ModelConfig(
  vocab=37, dim=24, layers=4, pattern=("attention",), block="mlp", mlp_dim=20, head_bias=False, logit_scale=0.5,
  attention=AttentionConfig(heads=4, kv_heads=2, key_dim=6, value_dim=6, rope_scaling=RopeScalingConfig(
    kind="llama3", factor=8.0, original_len=64)))
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}


def export(model, params, folder, **options):
  export_model(model, params, folder, context_len=64, special_ids=SPECIAL, **options)
  return folder


def make_params(model):
  return jax.jit(lambda: unbox(init_variables(model, jax.random.key(3))["params"]))()


def test_the_logits_of_our_model_are_those_of_the_tensors_that_are_written(tmp_path):
  params = make_params(OURS)
  folder = export(OURS, params, tmp_path / "out")
  config = json.loads((folder / "config.json").read_text())
  theirs_TA = numpy_logits(config, load_file(folder / "model.safetensors"), TOKENS)
  np.testing.assert_allclose(our_logits(OURS, params), theirs_TA, rtol=1e-4, atol=1e-4)
  assert (config["eos_token_id"], config["max_position_embeddings"]) == (1, 64)


@pytest.mark.parametrize(
  "config", [
    LLAMA | {"attention_bias": True}, LLAMA | WINDOW | {"model_type": "mistral"},
    QWEN2 | {"use_sliding_window": True, "max_window_layers": 1, "rope_scaling": {
      "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}],
  ids=["llama", "mistral", "qwen2"])
def test_exported_and_read_again_is_the_same_model(config, tmp_path):
  model, params = load_pretrained(write_folder(tmp_path / "in", config, make_tensors(config)))
  again, same_params = load_pretrained(export(model, params, tmp_path / "out", shard_bytes=10_000))
  assert again == model
  assert_equal_trees(same_params, params)
  assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
  assert parse_config(to_dict(Config(model=again))).model == model


def test_unrolled_layers_and_bfloat16(tmp_path):
  unrolled = dataclasses.replace(OURS, scan_layers=False, layers=2, logit_scale=1.0)
  params = make_params(unrolled)
  folder = export(unrolled, params, tmp_path / "out", dtype="bfloat16")
  model, read = load_pretrained(folder)
  assert (model.layers, model.scan_layers) == (2, True)
  for layer in range(2):
    ours = params[f"group_{layer}"]["block_0"]["mlp"]["down"].astype("bfloat16").astype("float32")
    np.testing.assert_array_equal(read["groups"]["block_0"]["mlp"]["down"][layer], ours)


@pytest.mark.parametrize(
  ("change", "message"), [
    ({"block": "gau"}, "model.block=gau"), ({"head_bias": True}, "model.head_bias=True"),
    ({"tied_embeddings": True, "tied_bias": True}, "model.tied_bias=True"),
    ({"norm_bias": True}, "model.norm_bias=True"), ({"position_wavelength": 1e4}, "model.position_wavelength"),
    ({"pattern": ("vq",)}, "model.pattern=vq"),
    ({"pattern": ("window", "attention")}, "model.pattern=window,attention"),
    ({"mlp": "squared_relu"}, "model.mlp=squared_relu"),
    ({"attention": AttentionConfig(rope_theta=0.0)}, "model.attention.rope_theta=0"),
    ({"attention": AttentionConfig(gated=True)}, "model.attention.gated=True")],
  ids=["block", "head-bias", "tied-bias", "norm-bias", "positions", "pattern", "mixed", "mlp", "rope", "gated"])
def test_a_model_that_the_family_has_not_is_refused(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    export(dataclasses.replace(OURS, **change), {}, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
  (tmp_path / "mine").write_text("")
  with pytest.raises(ValueError, match="is not empty"):
    export(OURS, {}, tmp_path)
