"""Every key of a model file is used, refused or harmless, as one table says, and the page in docs shows that table."""

from __future__ import annotations

import pathlib
import re

import gguf
import numpy as np
import pytest

from lattice_jax.models.pretrained.config_json import read_model_config
from lattice_jax.models.pretrained.gguf_weights import GGUFWeights
from lattice_jax.models.pretrained.metadata import CONFIG, GGUF_BY_ARCHITECTURE, ROPE
from tests.models.published_configs import PUBLISHED
from tests.models.tiny_files import LLAMA, QWEN2, WINDOW, gguf_bytes

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "pretrained_metadata.md"
BASES = {
  "llama": LLAMA, "mistral": LLAMA | WINDOW | {"model_type": "mistral"},
  "qwen2": QWEN2 | {"use_sliding_window": True, "max_window_layers": 1}}
# a value of every used key that must change what is read, or be refused
OTHER = {
  "model_type": "gpt2", "vocab_size": 38, "hidden_size": 64, "intermediate_size": 63, "num_hidden_layers": 3,
  "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-4,
  "tie_word_embeddings": lambda old: not old, "max_position_embeddings": 63, "rope_theta": 50.0,
  "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 50.0},
  "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True, "sliding_window": 7,
  "use_sliding_window": False, "max_window_layers": 0}
BASE_ROPE = {
  "default": {}, "linear": {"factor": 2.0}, "dynamic": {"factor": 2.0},
  "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
  "yarn": {"factor": 4.0, "original_max_position_embeddings": 16}}
OTHER_ROPE = {
  "rope_type": "su", "type": "su", "rope_theta": 50.0, "factor": 3.0, "original_max_position_embeddings": 8,
  "low_freq_factor": 0.5, "high_freq_factor": 5.0, "attention_factor": 1.5, "beta_fast": 9.0, "beta_slow": 0.25,
  "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.7}
FIELDS = {
  "vocab_size": 37, "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64,
  "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8, "attention.value_length": 8,
  "attention.layer_norm_rms_epsilon": 1e-3, "attention.layer_norm_epsilon": 1e-3, "rope.dimension_count": 8,
  "rope.freq_base": 100.0}
YARN = {
  "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16,
  "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}
OTHER_FIELDS = {
  "vocab_size": 38, "context_length": 65, "embedding_length": 64, "block_count": 3, "feed_forward_length": 63,
  "attention.head_count": 8, "attention.head_count_kv": 1, "attention.key_length": 16, "attention.value_length": 16,
  "attention.layer_norm_rms_epsilon": 2e-3, "attention.layer_norm_epsilon": 2e-3, "rope.dimension_count": 4,
  "rope.freq_base": 50.0, "attention.sliding_window": 9, "rope.scale_linear": 2.0, "rope.scaling.type": "longrope",
  "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 8, "rope.scaling.attn_factor": 1.5,
  "rope.scaling.yarn_beta_fast": 9.0, "rope.scaling.yarn_beta_slow": 0.25}
# saved by transformers 4.57 and 5.24 for the three families where nothing is said
SAVED = """
  _name_or_path add_cross_attention architectures attention_bias attention_dropout bad_words_ids begin_suppress_tokens
  bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
  dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
  forced_bos_token_id forced_eos_token_id head_dim hidden_act hidden_size id2label initializer_range intermediate_size
  is_decoder is_encoder_decoder label2id layer_types length_penalty max_length max_position_embeddings
  max_window_layers min_length mlp_bias model_type no_repeat_ngram_size num_attention_heads num_beam_groups num_beams
  num_hidden_layers num_key_value_heads num_return_sequences output_attentions output_hidden_states output_scores
  pad_token_id prefix pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
  return_dict_in_generate rms_norm_eps rope_parameters rope_scaling rope_theta sep_token_id sliding_window
  suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings
  tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
  use_sliding_window vocab_size"""


def read(config, **options):
  return read_model_config(config, pathlib.Path("config.json"), dtype="float32", **options)


def read_or_sentence(config):
  try:
    return read(config)
  except ValueError as error:
    return str(error)


def rows_of_page():
  """header of each table → {key: rules}"""
  tables = {}
  for line in PAGE.read_text(encoding="utf-8").splitlines():
    if not line.startswith("| "):
      continue
    first, *rules = (cell.strip() for cell in line.strip("|").split(" | "))
    if first == "key":
      rows = tables.setdefault(tuple(rules), {})
    for key in re.findall(r"`([^`]+)`", first):
      assert key not in rows, f"{key} stands twice"
      rows[key] = tuple(rules)
  return tables


@pytest.mark.parametrize("table", [CONFIG, ROPE, GGUF_BY_ARCHITECTURE], ids=["config", "rope", "gguf"])
def test_page_shows_the_table(table):
  keys = {key for rules in table.values() for key in rules}
  wanted = {key: tuple(str(rules[key]) if key in rules else "refused" for rules in table.values()) for key in keys}
  assert rows_of_page()[tuple(table)] == wanted


@pytest.mark.parametrize("family", CONFIG)
def test_every_key_of_a_config_does_what_the_table_says(family):
  base = BASES[family]
  before = read(base)
  for key, rule in CONFIG[family].items():
    if rule.kind == "used":
      other = OTHER[key](base[key]) if callable(OTHER[key]) else OTHER[key]
      assert read_or_sentence(base | {key: other}) != before, key
    elif rule.kind == "harmless":
      assert read(base | {key: ["anything"]}) == before, key
    else:
      assert all(read(base | {key: value}) == before for value in rule.allowed), key
      for value in (2, "yes", [1], rule.allowed != (True,)):
        assert read_or_sentence(base | {key: value}).startswith(f"config.json says {key}="), key


@pytest.mark.parametrize("family", CONFIG)
def test_an_unknown_key_is_refused_and_null_is_not(family):
  for key in ("rotary_dim", "no_rope_layers", "new\nline", "x" * 500):
    with pytest.raises(ValueError, match=r"a key that is not known .* take it out of the file") as error:
      read(BASES[family] | {key: 0.5})
    assert "\n" not in str(error.value)
    assert read(BASES[family] | {key: None}) == read(BASES[family])


@pytest.mark.parametrize("family", CONFIG)
def test_what_transformers_saves_is_known(family):
  assert not set(SAVED.split()) - set(CONFIG[family])


@pytest.mark.parametrize("kind", ROPE)
def test_every_key_of_the_rotary_embedding_does_what_the_table_says(kind):
  # rope_theta is left to the rotary embedding itself
  base = {key: value for key, value in LLAMA.items() if key != "rope_theta"}

  def config(**changes):
    return base | {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0} | BASE_ROPE[kind] | changes}

  before = read(config())
  for key in set(OTHER_ROPE) | set().union(*ROPE.values()):
    rule = ROPE[kind][key] if key in ROPE[kind] else None
    if rule is None:
      assert f"rope_scaling.{key}=0.5, a key that is not known" in read_or_sentence(config(**{key: 0.5})), key
    elif rule.kind == "used":
      after = read_or_sentence(config(**{key: OTHER_ROPE[key]}))
      # «dynamic» changes nothing before texts are longer than those of training
      assert after != before or (kind, key) == ("dynamic", "factor"), key
    elif rule.kind == "harmless":
      assert read(config(**{key: True})) == before
    else:
      assert read(config(**{key: rule.allowed[0]})) == before
      assert f"rope_scaling.{key}=0.5, which changes" in read_or_sentence(config(**{key: 0.5}))


def open_gguf(path, fields, family="llama", tensors=None):
  path.write_bytes(gguf_bytes(
    {"general.architecture": family} | {f"{family}.{key}": value for key, value in fields.items()},
    tensors or {"token_embd.weight": np.zeros((37, 32), np.float32), "output.weight": np.zeros((37, 32), np.float32)}))
  weights = GGUFWeights(path)
  return read_model_config(weights.config, path, dtype="float32")


def open_or_sentence(path, fields, family="llama", **options):
  try:
    return open_gguf(path, fields, family, **options)
  except ValueError as error:
    return str(error)


@pytest.mark.parametrize("family", GGUF_BY_ARCHITECTURE)
def test_every_key_of_a_gguf_does_what_the_table_says(family, tmp_path):
  path = tmp_path / "a.gguf"
  before, stretched = (open_gguf(path, fields, family) for fields in (FIELDS, FIELDS | YARN))
  for key, rule in GGUF_BY_ARCHITECTURE[family].items():
    base, unchanged = (FIELDS | YARN, stretched) if key in YARN else (FIELDS, before)
    if rule.kind == "used":
      assert open_or_sentence(path, base | {key: OTHER_FIELDS[key]}, family) != unchanged, key
    elif rule.kind == "harmless":
      assert open_gguf(path, base | {key: True}, family) == unchanged, key
    else:
      assert all(open_gguf(path, base | {key: value}, family) == unchanged for value in rule.allowed), key
      for value in (0.37, "other", [1, 2]):
        assert f" says {family}.{key}=" in open_or_sentence(path, base | {key: value}, family), key


def constants(cls):
  for name, value in vars(cls).items():
    if isinstance(value, type):
      yield from constants(value)
    elif isinstance(value, str) and not name.startswith("_"):
      yield value


@pytest.mark.parametrize("family", GGUF_BY_ARCHITECTURE)
def test_every_other_key_of_the_specification_is_refused(family, tmp_path):
  names = {key.removeprefix("{arch}.") for key in constants(gguf.constants.Keys) if key.startswith("{arch}.")}
  others = sorted(names - set(GGUF_BY_ARCHITECTURE[family]))
  assert len(names) > 110 and len(others) > 50
  for key in others:
    message = open_or_sentence(tmp_path / "a.gguf", FIELDS | {key: 1}, family)
    assert f"says {family}.{key}=1, a key that is not known" in message


def test_keys_of_other_groups_change_nothing(tmp_path):
  path = tmp_path / "a.gguf"
  before = open_gguf(path, FIELDS)
  others = {
    "general.architecture": "llama", "general.type": "model", "general.file_type": 3, "quantize.imatrix.file": "x",
    "mistral.rope.freq_base": 5.0, "somebody.note": "x"}
  fields = others | {f"llama.{key}": value for key, value in FIELDS.items()}
  tensors = {"token_embd.weight": np.zeros((37, 32), np.float32), "output.weight": np.zeros((37, 32), np.float32)}
  path.write_bytes(gguf_bytes(fields, tensors))
  assert read_model_config(GGUFWeights(path).config, path, dtype="float32") == before
  for change in ({"general.type": "adapter"}, {"split.count": 3}, {"general.type": 7}):
    path.write_bytes(gguf_bytes(fields | change, tensors))
    with pytest.raises(ValueError, match=r"not a model|one of 3 parts|is not text"):
      GGUFWeights(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read(name):
  config, (length, theta, kind, pattern, bias, width, kv_heads) = PUBLISHED[name]
  model, context_len = read(config)
  attention = model.attention
  assert (context_len, attention.rope_theta, attention.rope_scaling.kind) == (length, theta, kind)
  assert (model.pattern, attention.bias, attention.key_dim, attention.kv_heads) == (pattern, bias, width, kv_heads)
  assert (model.dim, model.vocab, model.layers) == (
    config["hidden_size"], config["vocab_size"], config["num_hidden_layers"])


def test_the_gguf_of_smollm2_is_read(tmp_path):
  fields = {
    "context_length": 8192, "embedding_length": 576, "block_count": 30, "feed_forward_length": 1536,
    "attention.head_count": 9, "attention.head_count_kv": 3, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 64, "rope.freq_base": 1e5}
  model, context_len = open_gguf(
    tmp_path / "a.gguf", fields, tensors={"token_embd.weight": np.zeros((3, 576), np.float32)})
  assert (context_len, model.attention.rope_theta, model.layers) == (8192, 1e5, 30)
  assert model.tied_embeddings and model.attention.key_dim == 64
