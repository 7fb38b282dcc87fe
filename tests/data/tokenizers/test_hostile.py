"""Tokenizer files that are damaged or made to harm, by the hundred: each is read, or refused in one sentence.

Trials run in this process here, so that hundreds take seconds; that a process of their own bounds them is tested below
and in test_chat_template.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from lattice_jax.data.tokenizers import added_tokens, sandbox, sentencepiece_backend, trial
from lattice_jax.data.tokenizers.backend import FastBackend, starts_with
from lattice_jax.data.tokenizers.gguf_bpe import bpe_of_gguf
from lattice_jax.data.tokenizers.pretrained import PretrainedTokenizer, read_pretrained_tokenizer
from lattice_jax.data.tokenizers.sentencepiece_backend import sentencepiece_of_gguf
from lattice_jax.data.tokenizers.special_tokens import header_special_tokens
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.shown import reason_of
from tests.data.tokenizers import test_backend
from tests.data.tokenizers.test_pretrained import SPECIAL, read, write_header, write_json

WRONG = (None, -1, 10**30, "x", [], {"a": 1}, True)
WRONG_FIELDS = (-1, 1.5, 10**15, "x", [], ["a"], True, np.arange(3), np.float32([1.0]))


@pytest.fixture
def in_this_process(monkeypatch):
  def call(module, request):
    try:
      return trial.answer(request)
    except BaseException as error:
      raise ValueError(reason_of(error)) from error

  for module in (added_tokens, sentencepiece_backend):
    monkeypatch.setattr(module, "call_in_sandbox", call)


def outcome(function, *arguments):
  """None, or the sentence of a refusal; anything else that is raised fails the test."""
  try:
    function(*arguments)
  except ValueError as error:
    sentence = str(error)
    assert "\n" not in sentence.strip() and "Traceback" not in sentence and " object at 0x" not in sentence
    assert len(sentence) < 900, sentence
    return sentence
  return None


def use(path):
  """Reads the tokenizer and has it do everything."""
  tokenizer = read_pretrained_tokenizer("tiny", path)
  ids = tokenizer.encode("<|bos|>the cats of 1984 <|end|>é".encode())
  tokenizer.decode(np.append(ids, [0, 10**6]))
  return tokenizer


def places(value, path=()):
  """The path to every field; of long lists and objects only to a few."""
  if path:
    yield path
  keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
  for key in list(keys)[:9]:
    yield from places(value[key], (*path, key))


def replaced(value, path, new):
  """A copy with another value at the path."""
  if not path:
    return new
  copy = dict(value) if isinstance(value, dict) else list(value)
  copy[path[0]] = replaced(value[path[0]], path[1:], new)
  return copy


def rich_tokenizer(folder):
  """One that uses many of the library's parts."""
  write_json(folder, "gpt-2")
  file = folder / "tokenizer.json"
  tokenizer = Tokenizer.from_file(str(file))
  tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("x+"), "x")])
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(r"\d+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
  tokenizer.post_processor = starts_with(SPECIAL[1], 1)
  tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("y", "y")])
  tokenizer.save(str(file))
  return json.loads(file.read_text())


def test_wrong_types_in_every_field_of_a_tokenizer_json(tmp_path, in_this_process):
  content, outcomes = rich_tokenizer(tmp_path), []
  for path in places(content):
    for wrong in WRONG:
      (tmp_path / "tokenizer.json").write_text(json.dumps(replaced(content, path, wrong)))
      outcomes.append(outcome(use, tmp_path))
  assert len(outcomes) > 300
  assert sum(sentence is not None for sentence in outcomes) > len(outcomes) // 2


def test_wrong_types_in_every_field_of_the_other_files(tmp_path, in_this_process):
  token = {"content": "<|x|>", "lstrip": False, "normalized": False, "special": True}
  config = {
    "add_bos_token": True, "added_tokens_decoder": {"290": token, "291": {"content": "<y>"}}, "bos_token": SPECIAL[1],
    "additional_special_tokens": [SPECIAL[2], token], "chat_template": [{"name": "default", "template": "a"}],
    "eos_token": {"content": SPECIAL[2], "special": True}, "split_special_tokens": False, "pad_token": "<|x|>"}
  files = {
    "tokenizer_config.json": config, "special_tokens_map.json": {"bos_token": SPECIAL[1], "unk_token": token},
    "added_tokens.json": {"<|x|>": 290, "<y>": 291}, "generation_config.json": {"eos_token_id": [1, 2]}}
  write_json(tmp_path, "gpt-2")
  for name, content in files.items():
    (tmp_path / name).write_text(json.dumps(content))
  assert outcome(use, tmp_path) is None
  count = 0
  for name, content in files.items():
    for path in ((), *places(content)):
      for wrong in WRONG:
        (tmp_path / name).write_text(json.dumps(replaced(content, path, wrong)))
        outcome(use, tmp_path)
        count += 1
    (tmp_path / name).write_text(json.dumps(content))
  assert count > 200


def test_damaged_bytes(tmp_path, in_this_process):
  random = np.random.default_rng(0)
  rich_tokenizer(tmp_path)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    whole = (tmp_path / name).read_bytes()
    for _ in range(60):
      raw = bytearray(whole)
      for place in random.integers(len(raw), size=3):
        raw[place] = random.integers(256)
      (tmp_path / name).write_bytes(raw[:random.integers(len(raw))] if random.random() < 0.3 else raw)
      outcome(use, tmp_path)
    (tmp_path / name).write_bytes(whole)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_wrong_types_in_every_field_of_a_header(kind, tmp_path, in_this_process):
  path = (write_header if kind == "gpt2" else test_backend.write_header)(tmp_path / "a.gguf")
  file, refused = GGUFFile(path), 0
  fields = dict(file.fields)
  names = [name for name in fields if name.startswith("tokenizer.")] + [
    f"tokenizer.ggml.{name}" for name in (
      "add_bos_token", "eot_token_id", "padding_token_id", "add_space_prefix", "precompiled_charsmap")]

  def build():
    pieces = FastBackend(bpe_of_gguf(file)) if kind == "gpt2" else sentencepiece_of_gguf(file)
    PretrainedTokenizer("tiny", pieces, header_special_tokens(file)).encode(b"the cats")

  for name in names:
    for wrong in WRONG_FIELDS:
      file.fields = fields | {name: wrong}
      refused += outcome(build) is not None
  assert refused > len(names) * len(WRONG_FIELDS) // 2


@pytest.mark.parametrize(
  ("part", "pattern"), [
    ("pre_tokenizer", r"(a+)+$"), ("pre_tokenizer", r"(?:\w|\d)+\x07"),
    ("normalizer", r"(1+)+$"), ("decoder", r"(Ġ+)+$|(a+)+$")])
def test_an_expression_that_explodes_is_refused_before_any_text_is_read(part, pattern, tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(sandbox, "SECONDS", 2)
  write_json(tmp_path, "gpt-2")
  file = tmp_path / "tokenizer.json"
  tokenizer, expression = Tokenizer.from_file(str(file)), Regex(pattern)
  setattr(tokenizer, part, {
    "pre_tokenizer": pre_tokenizers.Split(expression, "isolated"), "normalizer": normalizers.Replace(expression, ""),
    "decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Replace(expression, "")])}[part])
  tokenizer.save(str(file))
  sentence = outcome(read, tmp_path)
  assert sentence is not None
  assert "is not a tokenizer that the tokenizers library reads" in sentence
  assert "retry-limit" in sentence or "it takes more than 2 seconds" in sentence
  assert capfd.readouterr() == ("", "")


def test_an_expression_that_explodes_on_one_text_only_is_a_sentence(tmp_path):
  write_json(tmp_path, "gpt-2")
  file = tmp_path / "tokenizer.json"
  tokenizer = Tokenizer.from_file(str(file))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(r"(?:qx|q|xq|x)+!"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
  tokenizer.save(str(file))
  read_again = read(tmp_path)
  assert read_again.decode(read_again.encode(b"the qx!")) == b"the qx!"
  with pytest.raises(ValueError, match=r"the tokenizer fails at this text \(.*retry-limit-in-match over\); shorten"):
    read_again.encode(b"qx" * 60)


def test_damaged_sentencepiece_models_end_in_a_sentence(tmp_path):
  random, whole = np.random.default_rng(0), test_backend.trained()
  (tmp_path / "tokenizer_config.json").write_text("{}")
  for share in (0.0, 0.3, 1.0, 1.0, 1.0, 1.0):
    raw = bytearray(whole[:int(share * len(whole))])
    for place in random.integers(len(raw), size=5) if raw else ():
      raw[place] = random.integers(256)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    outcome(read, tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_ids_without_a_piece_give_no_text(kind, tmp_path):
  """Embeddings often have more rows than the tokenizer has tokens."""
  tokenizer = read((write_header if kind == "gpt2" else test_backend.write_header)(tmp_path / "a.gguf"))
  ids = tokenizer.encode(b"the cats")
  assert tokenizer.decode(np.array([*ids, tokenizer.vocab_size, 10**9])) == b"the cats"


def test_a_folder_without_a_tokenizer_of_any_kind_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"holds neither tokenizer\.json nor tokenizer\.model"):
    read(tmp_path)
  (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # as tiktoken writes it
  with pytest.raises(ValueError, match=r"tokenizer\.model is not a .*; get its tokenizer\.json"):
    read(tmp_path)
