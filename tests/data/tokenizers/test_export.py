"""What is exported is read again as the same tokenizer, of every kind: ids, texts, special ids, stop ids, flags."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from lattice_jax.config import DataConfig
from lattice_jax.data.tokenizers.export import export_tokenizer, special_ids
from lattice_jax.data.tokenizers.pretrained import read_pretrained_tokenizer
from lattice_jax.data.tokenizers.sentencepiece_to_json import as_fast_tokenizer
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from lattice_jax.data.tokenizers.train_bpe import train_bpe
from tests.data.tokenizers import test_backend, test_pretrained
from tests.data.tokenizers.test_backend import TEXTS as PIECES
from tests.data.tokenizers.test_pretrained import TEXTS as BPE
from tests.data.tokenizers.test_tokenizer import TEXT
from tests.models.tiny_files import LLAMA

TEXTS = [*BPE, *PIECES, "</s>hi <s> <|user|>hi<|user|> a", "<eos>a<pad>", "hi , there . it 's", "cafe\u0301"]


def bytes_data(folder):
  return DataConfig(tokenizer="bytes")


def lossless_data(folder):
  return DataConfig(source="books_sample", tokenizer="bpe_lossless:2048")


def paper_data(folder):
  train_bpe([TEXT], "bpe_paper:300", folder / "books_sample" / "bpe_paper_300.model")
  return DataConfig(source="books_sample", tokenizer="bpe_paper:300", path=str(folder))


def json_data(folder):
  test_pretrained.write_json(folder, padding_side="right", model_max_length=64, auto_map={"a": "b"})
  return DataConfig(tokenizer=f"pretrained:{folder}")


def spaced_data(folder):
  """A tokenizer that puts a space before a text, which its config does not repeat."""
  test_pretrained.write_json(folder)
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  return DataConfig(tokenizer=f"pretrained:{folder}")


def model_data(folder):
  """As Llama 2 keeps it: a sentencepiece model, with a token that another file adds."""
  (folder / "tokenizer.model").write_bytes(test_backend.trained())
  (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": len(test_backend.pieces())}))
  (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|im_end|>"}))
  (folder / "config.json").write_text(json.dumps(LLAMA | {"eos_token_id": 2}))
  return DataConfig(tokenizer=f"pretrained:{folder}")


def header_data(cut):
  return lambda folder: DataConfig(
    tokenizer=f"pretrained:{test_pretrained.write_header(folder / 'a.gguf', cut)}")


def pieces_data(**changes):
  return lambda folder: DataConfig(tokenizer=f"pretrained:{test_backend.write_header(folder / 'a.gguf', **changes)}")


KINDS = {
  "bytes": bytes_data, "lossless": lossless_data, "paper": paper_data, "json": json_data, "spaced": spaced_data,
  "sentencepiece": model_data, "gguf-gpt2": header_data("gpt-2"), "gguf-digits": header_data("smollm"),
  "gguf-llama3": header_data("llama-bpe"), "gguf-qwen2": header_data("qwen2"), "gguf-pieces": pieces_data(),
  "gguf-pieces-bare": pieces_data(add_dummy_prefix=False, add_add_bos_token=False)}


@pytest.fixture(params=KINDS)
def exported(request, tmp_path):
  """(the tokenizer, what is read from its export, the folder of the export)."""
  source, folder = tmp_path / "source", tmp_path / "exported"
  source.mkdir()
  folder.mkdir()
  data = KINDS[request.param](source)
  tokenizer = get_tokenizer(data)
  written = export_tokenizer(tokenizer, data, folder)
  assert sorted(written) == sorted(path.name for path in folder.iterdir())
  (folder / "config.json").write_text(json.dumps(LLAMA | special_ids(tokenizer)))
  return tokenizer, read_pretrained_tokenizer("again", folder), folder


def test_an_export_is_the_same_tokenizer(exported):
  tokenizer, again, _ = exported
  for text in TEXTS:
    ids = tokenizer.encode(text.encode())
    np.testing.assert_array_equal(again.encode(text.encode()), ids, err_msg=repr(text))
    assert again.decode(ids) == tokenizer.decode(ids), text
  assert again.vocab_size == tokenizer.vocab_size
  assert special_ids(again) == special_ids(tokenizer)
  assert (again.start_ids, again.eos_id, again.pad_id) == (tokenizer.start_ids, tokenizer.eos_id, tokenizer.pad_id)
  # a model trained here never writes its eos; for other programs it ends a text
  assert again.stop_ids == (tokenizer.stop_ids or (tokenizer.eos_id,))


def test_an_export_says_what_readers_would_otherwise_assume(exported):
  tokenizer, _, folder = exported
  config = json.loads((folder / "tokenizer_config.json").read_text())
  assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert config["add_bos_token"] == bool(tokenizer.start_ids)
  assert config["clean_up_tokenization_spaces"] is False
  assert "auto_map" not in config
  cutting = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"] or {}
  assert config.get("add_prefix_space") == cutting.get("add_prefix_space")


def test_flags_of_the_model_are_handed_on(tmp_path):
  data, folder = json_data(tmp_path), tmp_path / "exported"
  folder.mkdir()
  export_tokenizer(get_tokenizer(data), data, folder)
  config = json.loads((folder / "tokenizer_config.json").read_text())
  assert (config["padding_side"], config["model_max_length"]) == ("right", 64)
  assert config["chat_template"] == test_pretrained.TEMPLATE


def test_pieces_that_only_sentencepiece_can_cut_are_not_exported():
  model = test_backend.model()
  merged = [piece for piece in model.pieces if piece.type == 1 and len(piece.piece) > 1]
  merged[3].score = merged[4].score
  with pytest.raises(ValueError, match=r"share scores cannot be exported: .* keep its tokenizer\.model"):
    as_fast_tokenizer(model, (), finds_special=True)
  model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
  with pytest.raises(ValueError, match="not plain BPE cannot be exported"):
    as_fast_tokenizer(model, (), finds_special=True)


def test_numbers_are_no_text_that_others_read(tmp_path):
  data = DataConfig(tokenizer="symbols:8")
  with pytest.raises(ValueError, match="symbols:8 cannot be exported"):
    export_tokenizer(get_tokenizer(data), data, tmp_path)
