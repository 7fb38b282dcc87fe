"""What model files say of their rotary embedding: theta, the gain of yarn, and for how many tokens it was stretched."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.pretrained import load_pretrained, open_pretrained
from lattice_jax.models.pretrained.config_json import read_model_config
from lattice_jax.models.pretrained.export import export_model
from lattice_jax.models.pretrained.gguf_weights import GGUFWeights
from lattice_jax.ops.rotary_config import RopeScalingConfig
from tests.models import numpy_llama
from tests.models.test_export import SPECIAL, make_params
from tests.models.test_pretrained import our_logits
from tests.models.tiny_files import LLAMA, LLAMA3, QWEN2, gguf_bytes, make_tensors, write_folder

SILENT = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
GGUF = {
  "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64, "attention.head_count": 4,
  "attention.layer_norm_rms_epsilon": 1e-3}


def read(config, **options):
  return read_model_config(config, pathlib.Path("config.json"), dtype="float32", **options)


def read_gguf(path, fields, tensors=()):
  path.write_bytes(gguf_bytes(
    {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in fields.items()},
    {"token_embd.weight": np.zeros((37, 32), np.float32)} | dict(tensors)))
  return read_model_config(GGUFWeights(path).config, path, dtype="float32")


@pytest.mark.parametrize(
  ("config", "theta"), [
    (SILENT, 10_000.0),
    (SILENT | {"rope_scaling": LINEAR}, 10_000.0),
    (SILENT | {"rope_parameters": LINEAR}, 10_000.0),
    (SILENT | {"model_type": "mistral"}, 10_000.0),
    (SILENT | {"model_type": "qwen2", "head_dim": 8}, 10_000.0),
    (SILENT | {"rope_theta": 50.0, "rope_parameters": {"rope_type": "default"}}, 50.0),
    (SILENT | {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 60.0}}, 60.0),
    (SILENT | {"rope_theta": 60, "rope_parameters": {"rope_type": "default", "rope_theta": 60.0}}, 60.0),
    (SILENT | {"rope_parameters": NESTED}, 77.0),
    (SILENT | {"rope_parameters": NESTED | {"sliding_attention": {"rope_type": "default", "rope_theta": 5.0}}}, 77.0),
  ], ids=["silent", "linear", "parameters", "mistral", "qwen2", "outside", "inside", "both", "nested", "unused-type"])
def test_theta(config, theta):
  assert read(config)[0].attention.rope_theta == theta


@pytest.mark.parametrize(
  ("config", "message"), [
    ({"rope_theta": 50.0, "rope_parameters": {"rope_theta": 60.0}}, "rope_theta=50 and, within .*, 60; keep the"),
    ({"rope_parameters": LINEAR, "rope_scaling": YARN}, "rope_parameters and rope_scaling that differ"),
    ({"rope_scaling": LINEAR | {"type": "yarn"}}, "rope_type='linear' and type='yarn'"),
    ({"rope_parameters": NESTED, "layer_types": ["full_attention", "sliding_attention"], "model_type": "mistral",
      "sliding_window": 4}, "layers of different types different rotary"),
    ({"rope_parameters": NESTED | {"sliding_attention": {"rope_theta": 5.0}}, "sliding_window": 4,
      "layer_types": ["full_attention", "sliding_attention"], "model_type": "mistral"}, "different rotary"),
    ({"rope_parameters": {"full_attention": 7}}, "different rotary"),
    ({"rope_parameters": {"sliding_attention": {"rope_theta": 5.0}}}, "sliding_attention=an object, a key"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position_embeddings=None; it must"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor=None"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, r"low_freq_factor=4.0 must be .*below"),
    ({"rope_scaling": YARN | {"beta_fast": 0}}, "beta_fast=0; it must say a number above 0"),
    ({"rope_scaling": YARN | {"beta_fast": 0.5}}, r"beta_slow=1.0 must be .*below beta_fast=0.5"),
    ({"rope_scaling": YARN | {"truncate": "no"}}, "truncate='no'; it must say true or false"),
    ({"rope_scaling": YARN | {"mscale": 1.0}}, "mscale alone; mscale and mscale_all_dim"),
    ({"rope_scaling": YARN | {"mscale_all_dim": 1.0, "attention_factor": 1.0}}, "keep one of them"),
    ({"rope_scaling": YARN | {"attn_factor": 1.5}}, "rope_scaling.attn_factor=1.5, a key that is not known"),
    ({"rope_scaling": LINEAR | {"factor": 0.5}}, "factor=0.5; it must say a number of at least 1"),
    ({"rope_scaling": LINEAR | {"factor": 1e9}}, "stretches 64 tokens by 1e[+]09; no text is longer"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}}, "both are"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}, "heads of 2, which «dynamic»"),
    ({"rope_theta": 1}, "rope_theta=1; it must say a number above 1"),
  ])
def test_what_contradicts_itself_is_refused(config, message):
  with pytest.raises(ValueError, match=message):
    read(SILENT | config)


@pytest.mark.parametrize(
  ("given", "gain"), [
    ({}, 0.1 * math.log(4) + 1), ({"attention_factor": 1.7}, 1.7), ({"attention_factor": None}, 0.1 * math.log(4) + 1),
    ({"mscale": 0.707, "mscale_all_dim": 1.5}, (0.0707 * math.log(4) + 1) / (0.15 * math.log(4) + 1)),
    ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0)])
def test_gain_of_yarn(given, gain):
  model, _ = read(LLAMA | {"rope_scaling": YARN | given})
  assert model.attention.rope_scaling.gain == pytest.approx(gain, rel=1e-12)


def test_logits_of_yarn_without_truncation_equal_those_of_numpy(tmp_path):
  config = QWEN2 | {"rope_scaling": YARN | {
    "original_max_position_embeddings": 32, "truncate": False, "attention_factor": 1.4}}
  tensors, tokens = make_tensors(config), np.arange(90) % 37  # the model was made for 32 and stretched to 128
  ours_TA = our_logits(*load_pretrained(write_folder(tmp_path, config, tensors)), tokens)
  np.testing.assert_allclose(ours_TA, numpy_llama.logits(config, tensors, tokens), rtol=2e-4, atol=2e-4)
  config["rope_scaling"] |= {"truncate": True}
  assert np.abs(ours_TA - numpy_llama.logits(config, tensors, tokens)).max() > 1e-2


def test_attn_factor_of_a_gguf_multiplies_what_the_rule_gives(tmp_path):
  fields = GGUF | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
  for factor in (1.0, 1.5):
    model, _ = read_gguf(tmp_path / "a.gguf", fields | {"rope.scaling.attn_factor": factor})
    assert model.attention.rope_scaling.gain == pytest.approx(factor * (0.1 * math.log(4) + 1), rel=1e-12)


ORIGINAL = {"original_max_position_embeddings": 16}


@pytest.mark.parametrize(
  ("scaling", "length"), [
    (None, 64),
    (LINEAR, 256),
    (LINEAR | ORIGINAL, 64),
    (LINEAR | {"original_max_position_embeddings": 64}, 256),
    (LINEAR | {"factor": 2.51, "original_max_position_embeddings": 50}, 125),
    (LINEAR | {"factor": 1.0}, 64),
    (YARN, 256),
    (YARN | ORIGINAL, 64),
    (YARN | {"original_max_position_embeddings": 32}, 128),
    (YARN | {"original_max_position_embeddings": 8}, 64),
    ({"rope_type": "dynamic", "factor": 4.0}, 64),
    (LLAMA3 | ORIGINAL, 64),
    (LLAMA3, 64),
  ])
def test_a_stretched_model_reads_length_times_factor(scaling, length, tmp_path):
  """The file says 64 tokens."""
  assert read(LLAMA | {"rope_scaling": scaling})[1] == length
  kind = scaling["rope_type"] if scaling else "none"
  if kind in ("none", "linear", "yarn"):
    names = {"rope_type": "type", "factor": "factor", "original_max_position_embeddings": "original_context_length"}
    fields = {"rope.scaling." + names[key]: value for key, value in (scaling or {}).items()}
    assert read_gguf(tmp_path / "a.gguf", GGUF | fields)[1] == length


def test_a_length_that_is_asked_for_is_given():
  assert read(LLAMA | {"rope_scaling": LINEAR}, context_len=100)[1] == 100


@pytest.mark.parametrize(
  ("fields", "factor"), [
    ({"rope.scaling.factor": 4.0}, 4.0), ({"rope.scale_linear": 4.0}, 4.0), ({"rope.scaling.type": "linear"}, None),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 1.0}, None), ({"rope.scaling.factor": 0.0}, None)])
def test_a_gguf_with_a_factor_and_no_type_is_linear(fields, factor, tmp_path):
  model, length = read_gguf(tmp_path / "a.gguf", GGUF | fields)
  scaling = model.attention.rope_scaling
  assert (scaling.kind, scaling.factor) == (("linear", factor) if factor else ("none", 1.0))
  assert length == 64 * (factor or 1)


FACTORS = {"rope_freqs.weight": np.ones(4, np.float32)}


@pytest.mark.parametrize(
  ("fields", "tensors", "message"), [
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}, "contradict each other"),
    ({"rope.scaling.attn_factor": 1.5}, {}, "attn_factor of 1.5, which contradict"),
    ({"rope.scaling.type": "yarn"}, {}, "factor=None; it must"),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, FACTORS, "by rope_freqs.weight and by rope.scaling"),
    ({}, {"rope_freqs.weight": np.ones(5, np.float32)}, "not Llama 3's"),
    ({}, {"rope_freqs.weight": np.ones((2, 2), np.float32)}, "not Llama 3's"),
    ({}, {"rope_freqs.weight": np.zeros(4, np.float32)}, "not Llama 3's"),
    ({}, {"rope_freqs.weight": np.full(4, np.nan, np.float32)}, "not Llama 3's"),
    ({}, {"rope_freqs.weight": np.arange(1, 5, dtype=np.float32)}, "not Llama 3's"),
    ({"attention.key_length": 8, "rope.dimension_count": 4}, {}, "rope.dimension_count=4, where the rest of it says 8"),
    ({"rope.dimension_count": 8, "attention.value_length": 4}, {}, "value_length=4, where the rest of it says 8"),
    ({"attention.layer_norm_epsilon": 1e-5}, {}, "layer_norm_epsilon=1e-05, where the rest of it says 0.001"),
    ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, {}, "scale_linear=2.0, where the rest of it says 4.0"),
    ({"vocab_size": 36}, {}, "vocab_size=36, where the rest of it says 37"),
    ({"attention.head_count": [4, 4]}, {}, r"each layer its own llama.attention.head_count"),
  ])
def test_a_gguf_that_contradicts_itself_is_refused(fields, tensors, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    read_gguf(tmp_path / "a.gguf", GGUF | fields, tensors)


def test_factors_of_a_gguf_that_change_nothing(tmp_path):
  model, _ = read_gguf(tmp_path / "a.gguf", GGUF | {"rope.dimension_count": 8}, FACTORS)
  assert (model.attention.rope_scaling.kind, model.attention.rope_scaling.factor) == ("llama3", 1.0)


@pytest.mark.parametrize(
  "scaling", [
    RopeScalingConfig(kind="linear", factor=4.0, original_len=16),
    RopeScalingConfig(kind="yarn", factor=4.0, original_len=16, truncate=False, gain=1.3)], ids=["linear", "yarn"])
def test_exported_and_read_again_reads_as_many_tokens(scaling, tmp_path):
  model = ModelConfig(
    vocab=37, dim=24, layers=1, pattern=("attention",), block="mlp", mlp_dim=20, head_bias=False,
    attention=AttentionConfig(heads=4, kv_heads=2, key_dim=6, value_dim=6, rope_scaling=scaling))
  export_model(model, make_params(model), tmp_path / "out", context_len=64, special_ids=SPECIAL)
  again = open_pretrained(tmp_path / "out")
  assert (again.context_len, again.model.attention.rope_scaling) == (64, scaling)


def test_a_window_longer_than_the_context_is_as_long_as_the_context():
  model, length = read(LLAMA | {"model_type": "mistral", "sliding_window": 10**9})
  assert (model.pattern, model.attention.window, length) == (("window",), 64, 64)
