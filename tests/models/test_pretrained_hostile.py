"""Hundreds of damaged or hostile model files: each is refused in one sentence, or means what it says."""

from __future__ import annotations

import json
import pathlib
import re
import resource
import struct

import numpy as np
import pytest

from lattice_jax.models.pretrained import open_pretrained
from lattice_jax.models.pretrained.config_json import read_model_config
from lattice_jax.models.pretrained.gguf_weights import GGUFWeights
from tests.models.tiny_files import LLAMA, LLAMA3, QWEN2, gguf_bytes, make_tensors, write_folder

HUGE, DIGITS = 10**15, 10**400
NOT_SIZES = [
  HUGE, DIGITS, 2**31, 0, -1, -HUGE, float("nan"), float("inf"), -float("inf"), 1e300, 1.5, 32.0, "32", "", True, [32],
  {"a": 32}, "line\nbreak", "x" * 10_000, [[]] * 1000]
NOT_NUMBERS = [-1, -1e30, float("nan"), float("inf"), 1e300, DIGITS, "1", "", True, [1.0], {"a": 1}, "line\nbreak", 0]
QWEN = QWEN2 | {"use_sliding_window": True, "max_window_layers": 1}
FIELDS = {
  "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64, "attention.head_count": 4,
  "attention.head_count_kv": 2, "attention.key_length": 8, "attention.layer_norm_rms_epsilon": 1e-3,
  "rope.freq_base": 100.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
  "rope.scaling.original_context_length": 16}


@pytest.fixture(autouse=True)
def memory_stays_small():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  yield
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def assert_one_sentence(error):
  text = str(error)
  assert text.endswith(".") and text.isprintable() and len(text) < 500, text
  assert not re.search(r"<.* at |<class|\w+Error\b|Errno|array\(|dtype=", text), text


def refused(call):
  """Whether it raises ValueError with one sentence; another exception fails the test."""
  try:
    call()
  except ValueError as error:
    assert_one_sentence(error)
    return True
  return False


def read(config):
  return read_model_config(json.loads(json.dumps(config)), pathlib.Path("config.json"), dtype="float32")


@pytest.mark.parametrize("key", [
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
  "head_dim", "max_position_embeddings", "sliding_window"])
def test_sizes_of_a_config(key):
  accepted = [value for value in NOT_SIZES if not refused(lambda value=value: read(QWEN | {key: value}))]
  assert not accepted


@pytest.mark.parametrize(("key", "accepted"), [("rms_norm_eps", []), ("rope_theta", []), ("max_window_layers", [0])])
def test_numbers_of_a_config(key, accepted):
  found = [value for value in [*NOT_NUMBERS, HUGE] if not refused(lambda value=value: read(QWEN | {key: value}))]
  assert found == accepted


@pytest.mark.parametrize("scaling", [
  {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 16},
  {"rope_type": "dynamic", "factor": 4.0},
  LLAMA3,
  {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0,
   "attention_factor": 1.0},
  {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0},
], ids=["linear", "dynamic", "llama3", "yarn", "mscale"])
def test_numbers_of_the_rotary_embedding(scaling):
  for key in scaling:
    for value in NOT_NUMBERS:
      assert refused(lambda key=key, value=value: read(LLAMA | {"rope_scaling": scaling | {key: value}})), (key, value)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters", "layer_types", "tie_word_embeddings", "model_type"])
def test_what_is_no_number_of_a_config(key):
  for value in ([7], "x", 7, {"rope_type": ["yarn"]}, {"full_attention": []}, [{}] * 2, ["line\nbreak"] * 2, -1.5):
    assert refused(lambda value=value: read(LLAMA | {key: value})), value


def test_sizes_are_compared_with_the_tensors_before_anything_is_built(tmp_path, monkeypatch):
  monkeypatch.setattr("lattice_jax.models.pretrained.load.wanted_tensors", None)
  tensors = make_tensors(LLAMA)
  for change in (
    {"vocab_size": 2**31 - 1}, {"hidden_size": 2**31 - 1}, {"intermediate_size": 2**31 - 1}, {"head_dim": 2**31 - 2},
    {"num_attention_heads": 2**30}, {"num_hidden_layers": 1000}, {"num_key_value_heads": 1},
    {"vocab_size": 2**31 - 1, "hidden_size": 2**31 - 1, "intermediate_size": 2**31 - 1, "num_hidden_layers": 1000}):
    folder = write_folder(tmp_path, LLAMA | change, tensors)
    with pytest.raises(ValueError, match=r"and its config promises|lacks the tensor") as error:
      open_pretrained(folder)
    assert_one_sentence(error.value)


def damaged(raw, random, count):
  """`raw` with bytes changed, doubled, left out or cut off."""
  for _ in range(count):
    place, length = int(random.integers(len(raw))), int(random.integers(1, 9))
    noise = random.integers(0, 256, length).astype(np.uint8).tobytes()
    digit = b"-0123456789e.\"{}[],: \n"[int(random.integers(22)):][:1]
    yield [
      raw[:place] + noise + raw[place + length:], raw[:place] + digit + raw[place + 1:],
      raw[:place] + digit + raw[place:], raw[:place] + raw[place + length:], raw[:place],
      raw[:place] + raw[max(place - 20, 0):]][int(random.integers(6))]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_damaged_json(file, tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA), shards=2)
  raw = (folder / file).read_bytes()
  outcomes = []
  for content in damaged(raw, np.random.default_rng(3), 150):
    (folder / file).write_bytes(content)
    outcomes.append(refused(lambda: open_pretrained(folder)))
  assert sum(outcomes) > 120


def test_json_of_every_kind_of_nonsense(tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA), shards=2)
  for file in ("config.json", "model.safetensors.index.json"):
    whole = (folder / file).read_bytes()
    for content in (
      b"", b"null", b"[]", b"7", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{" * 99_999, b'{"a":' * 99_999, b"{}" * 2,
      b'{"model_type": "llama"', b'{"a": ' + b"9" * 9_999 + b"}", b'{"weight_map": {"a": 7}}', b'{"weight_map": {}}',
      b'{"weight_map": {"a": "\\u0000.safetensors"}}', b'{"weight_map": {"a": "b\\n.safetensors"}}',
      b'{"weight_map": {"a": ".safetensors"}}', b'{"weight_map": {"a": "' + b"x" * 5_000 + b'.safetensors"}}',
      b'{"weight_map": {"a": "..\\\\b.safetensors"}}', b'{"a\\nb": 1, "a\\nb": 2}', b"\x00" * 64):
      (folder / file).write_bytes(content)
      assert refused(lambda: open_pretrained(folder)), content[:60]
    (folder / file).write_bytes(whole)


def test_damaged_headers_of_safetensors(tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA))
  path = folder / "model.safetensors"
  raw = path.read_bytes()
  start = 8 + struct.unpack("<Q", raw[:8])[0]
  outcomes = []
  for head in damaged(raw[:start], np.random.default_rng(4), 200):
    path.write_bytes(head + raw[start:])
    outcomes.append(refused(lambda: open_pretrained(folder)))
  assert sum(outcomes) > 180


def test_hostile_entries_of_safetensors(tmp_path):
  folder = write_folder(tmp_path, LLAMA, make_tensors(LLAMA))
  for entry in (
    *({"dtype": "F32", "shape": shape, "data_offsets": offsets} for shape, offsets in (
      ([HUGE, 0], [0, 0]), ([HUGE], [0, 8]), ([-2], [0, 8]), ([2], [8, 0]), ([2], [0, 2**63]),
      ([2**32, 2**32], [0, 8]), ([], [0, 4]))),
    {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2]}, 7, {}):
    for name in ("model.embed_tokens.weight", "line\nbreak", "", "x" * 5_000):
      header = json.dumps({name: entry}).encode()
      (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
      assert refused(lambda: open_pretrained(folder)), entry


def test_damaged_headers_of_gguf(tmp_path):
  tensors = {"token_embd.weight": np.zeros((37, 32), np.float32), "blk.0.attn_q.weight": np.zeros((32, 32), np.float32)}
  fields = {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in FIELDS.items()}
  raw, path = gguf_bytes(fields, tensors), tmp_path / "a.gguf"
  start = len(raw) - 4 * 32 * (37 + 32)
  outcomes = []
  for head in damaged(raw[:start], np.random.default_rng(5), 400):
    path.write_bytes(head + raw[start:])
    outcomes.append(refused(lambda: open_pretrained(path)))
  assert all(outcomes)


@pytest.mark.parametrize("key", FIELDS)
def test_numbers_of_a_gguf(key, tmp_path):
  path = tmp_path / "a.gguf"
  tensors = {"token_embd.weight": np.zeros((37, 32), np.float32)}

  def open_with(value):
    fields = {f"llama.{name}": number for name, number in (FIELDS | {key: value}).items()}
    path.write_bytes(gguf_bytes({"general.architecture": "llama"} | fields, tensors))
    read_model_config(GGUFWeights(path).config, path, dtype="float32")

  open_with(FIELDS[key])
  for value in (HUGE, 2**62, -1, float("nan"), float("inf"), 1e300, "32", "line\nbreak", True, [32], [], "x" * 9_999):
    assert refused(lambda value=value: open_with(value)), value
  if key != "rope.scaling.factor":
    assert refused(lambda: open_with(0))
