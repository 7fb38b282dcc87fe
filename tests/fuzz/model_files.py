"""Readers of pretrained models: GGUF, folders of safetensors, and their tokenizers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import sentencepiece
import tokenizers

from lattice_jax.data.tokenizers import added_tokens, sentencepiece_backend, trial
from lattice_jax.data.tokenizers.pretrained import read_pretrained_tokenizer
from lattice_jax.formats import gguf_file
from lattice_jax.formats.gguf_file import GGUFFile
from lattice_jax.models.pretrained.load import open_pretrained
from lattice_jax.shown import reason_of
from tests.fuzz.harness import Reader
from tests.models.tiny_files import LLAMA, make_tensors, write_folder, write_gguf

TINY = LLAMA | {
  "vocab_size": 8, "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 4}
_TOKENS = ["<|end|>", "<|bos|>", "t", "h", "e", "th", "the", "Ġ"]
_TEXT = "<|bos|>the the <|end|>é".encode()


def make_gguf(folder: Path) -> tuple[str, ...]:
  fields = [
    ("add_tokenizer_model", "gpt2"), ("add_tokenizer_pre", "smollm"), ("add_token_list", _TOKENS),
    ("add_token_merges", ["t h", "th e"]), ("add_token_types", [3, 3, 1, 1, 1, 1, 1, 1]), ("add_bos_token_id", 1),
    ("add_eos_token_id", 0)]
  write_gguf(folder / "floats.gguf", TINY, make_tensors(TINY), fields=fields)
  wide = TINY | {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
  pieces = sentencepiece_model()
  write_gguf(folder / "blocks.gguf", wide, make_tensors(wide), kind="Q4_1", fields=[
    ("add_tokenizer_model", "llama"), ("add_token_list", [pieces.id_to_piece(id) for id in range(len(pieces))]),
    ("add_token_scores", [pieces.get_score(id) for id in range(len(pieces))]),
    ("add_token_types", [2, 3, 3] + [1] * (len(pieces) - 3)), ("add_bos_token_id", 1), ("add_eos_token_id", 2)])
  return "floats.gguf", "blocks.gguf"


def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
  """Of a few pieces."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cat sat there"] * 3), model_writer=model, vocab_size=20, model_type="bpe",
    hard_vocab_limit=False, minloglevel=2)
  return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def read_gguf(folder: Path) -> None:
  """Tensors, and the model that they are."""
  for path in sorted(folder.glob("*.gguf")):
    gguf_file._read_once.cache_clear()
    file = GGUFFile(path)
    for name in file.tensors:
      file.read(name)
      file.read_codes(name)
      file.stored(name)
    read_model(path)


def read_gguf_tokenizer(folder: Path) -> None:
  for path in sorted(folder.glob("*.gguf")):
    gguf_file._read_once.cache_clear()
    use_tokenizer(path)


def read_model(path: Path) -> None:
  """Everything up to the parameters, which are read one by one."""
  found = open_pretrained(path)
  for name in found.weights.shapes:
    found.weights.read(name)
    found.weights.read_codes(name)
    found.weights.stored(name)


def use_tokenizer(path: Path) -> None:
  """Reads the tokenizer and has it do everything. Trials run in this process: a thousand times as many fit."""
  def call(module: str, request: dict[str, Any]) -> Any:
    assert module == "trial"
    try:
      return trial.answer(request)
    except BaseException as error:  # a panic in a native library is not an Exception
      if isinstance(error, KeyboardInterrupt):
        raise
      raise ValueError(reason_of(error)) from error

  before = added_tokens.call_in_sandbox
  added_tokens.call_in_sandbox = sentencepiece_backend.call_in_sandbox = call
  try:
    tokenizer = read_pretrained_tokenizer("tiny", path)
    ids = tokenizer.encode(_TEXT)
    tokenizer.decode(np.append(ids, [0, 10**6]))
  finally:
    added_tokens.call_in_sandbox = sentencepiece_backend.call_in_sandbox = before


def make_safetensors(folder: Path) -> tuple[str, ...]:
  tensors = make_tensors(TINY)
  write_folder(folder, TINY, tensors)
  (folder / "model.safetensors").unlink()
  half = len(tensors) // 2
  parts = {"a.safetensors": dict(list(tensors.items())[:half]), "b.safetensors": dict(list(tensors.items())[half:])}
  for file, part in parts.items():
    safetensors.numpy.save_file(part, folder / file, metadata={"format": "pt"})
  index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return "a.safetensors", "config.json", "model.safetensors.index.json"


def make_tokenizer(folder: Path) -> tuple[str, ...]:
  model = tokenizers.models.BPE({token: id for id, token in enumerate(_TOKENS)}, [("t", "h"), ("th", "e")])
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in _TOKENS[:2]])
  tokenizer.save(str(folder / "tokenizer.json"))
  files = {
    "tokenizer_config.json": {
      "bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}, "chat_template": "{{ messages }}",
      "added_tokens_decoder": {"8": {"content": "<|user|>", "special": True}}, "add_bos_token": True},
    "special_tokens_map.json": {"bos_token": {"content": "<|bos|>"}, "additional_special_tokens": ["<|user|>"]},
    "added_tokens.json": {"<|user|>": 8}, "generation_config.json": {"eos_token_id": [0, 8]},
    "config.json": TINY | {"eos_token_id": 0}}
  for name, content in files.items():
    (folder / name).write_text(json.dumps(content))
  return "tokenizer.json", *files


def make_sentencepiece(folder: Path) -> tuple[str, ...]:
  (folder / "tokenizer.model").write_bytes(sentencepiece_model().serialized_model_proto())
  (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": len(sentencepiece_model())}))
  return "tokenizer.model", "added_tokens.json"


_FORMATS = ("lattice_jax.formats", "lattice_jax.models.pretrained")
_TOKENIZERS = ("lattice_jax.data.tokenizers", "lattice_jax.formats")
READERS = (
  Reader("gguf", make_gguf, read_gguf, _FORMATS),
  Reader("safetensors", make_safetensors, read_model, _FORMATS),
  Reader("tokenizer", make_tokenizer, use_tokenizer, _TOKENIZERS),
  Reader("sentencepiece", make_sentencepiece, use_tokenizer, _TOKENIZERS),
  Reader("gguf_tokenizer", make_gguf, read_gguf_tokenizer, _TOKENIZERS),
)
