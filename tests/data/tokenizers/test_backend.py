"""Sentencepiece models inside GGUF files: the ids and texts of the library that made the model."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from lattice_jax.data.tokenizers.pretrained import read_pretrained_tokenizer
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from tests.models.tiny_files import LLAMA, write_gguf

TEXTS = [
  "", " ", "the cats", "  two  spaces ", "a\n\n\tb", "aaaaaaa  aaa", "naïve 東京 🙂", "12345", "▁the▁", "<0x41>",
  "don't <|user|> hi"]


@functools.lru_cache
def trained(add_dummy_prefix=True):
  """A model as Llama 2 has it: BPE of characters, bytes for the rest, the text as it is."""
  lines = ["the cats of 1984 don't go there, 12 of 123 tails hi  the the aaaa aaa aa <|user|>"] * 9
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=add_dummy_prefix,
    split_digits=True, user_defined_symbols=["<|user|>"], hard_vocab_limit=False, minloglevel=2)
  return model.getvalue()


def model(add_dummy_prefix=True):
  return proto.ModelProto.FromString(trained(add_dummy_prefix))


def pieces(add_dummy_prefix=True):
  return model(add_dummy_prefix).pieces


def write_header(path, *, add_dummy_prefix=True, **changes):
  held = pieces(add_dummy_prefix)
  fields = {
    "add_tokenizer_model": "llama", "add_token_list": [piece.piece for piece in held],
    "add_token_scores": [piece.score for piece in held], "add_token_types": [piece.type for piece in held],
    "add_unk_token_id": 0, "add_bos_token_id": 1, "add_eos_token_id": 2,
    "add_add_space_prefix": None if add_dummy_prefix else False} | changes
  fields = [(method, value) for method, value in fields.items() if value is not None]
  return write_gguf(path, LLAMA, {"output_norm.weight": np.ones(2, np.float32)}, fields=fields)[0]


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_ids_and_texts_are_those_of_the_model_that_the_file_was_made_from(add_dummy_prefix, tmp_path):
  path = write_header(tmp_path / "a.gguf", add_dummy_prefix=add_dummy_prefix)
  tokenizer = read_pretrained_tokenizer("tiny", path)
  model = sentencepiece.SentencePieceProcessor(model_proto=trained(add_dummy_prefix))
  assert isinstance(tokenizer, Tokenizer)
  for text in TEXTS:
    ids = tokenizer.encode(text.encode())
    assert ids.tolist() == model.encode(text)
    assert tokenizer.decode(ids).decode() == model.decode(model.encode(text))
  assert (tokenizer.vocab_size, tokenizer.start_ids, tokenizer.stop_ids) == (model.vocab_size(), (1,), (2,))


def test_special_tokens_of_a_text_become_their_ids_and_each_part_is_a_text(tmp_path):
  tokenizer = read_pretrained_tokenizer("tiny", write_header(tmp_path / "a.gguf", add_add_bos_token=False))
  hi = tokenizer.encode(b"hi").tolist()
  assert tokenizer.encode(b"<s>hi</s>hi<s>").tolist() == [1, *hi, 2, *hi, 1]
  assert tokenizer.encode(b"hi<unk>hi").tolist() == [*hi, 0, *hi]
  assert (tokenizer.start_ids, tokenizer.bos_id) == ((), 1)
  assert tokenizer.decode(np.array([1, *hi, 2])) == b"hi"
  assert tokenizer.pieces.id_of("no such piece") is None


@pytest.mark.parametrize(
  ("changes", "message"), [
    ({"add_token_scores": None}, "without scores or types"),
    ({"add_token_scores": [0.0]}, "whose tokens, scores and types do not fit"),
    ({"add_token_types": [9] * 320}, "do not fit"),
    ({"add_token_list": ["a"] * 320}, "a tokenizer that cannot be: sentencepiece cannot read it"),
  ], ids=["none", "short", "types", "twice"])
def test_a_header_that_contradicts_itself_is_refused(changes, message, tmp_path):
  sizes = {len(value) for value in changes.values() if value} - {1}
  assert sizes <= {len(pieces())}
  with pytest.raises(ValueError, match=message):
    read_pretrained_tokenizer("tiny", write_header(tmp_path / "a.gguf", **changes))
