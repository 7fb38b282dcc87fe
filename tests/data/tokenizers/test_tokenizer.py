import dataclasses

import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data.published import SAMPLES
from lattice_jax.data.sources import read_raw
from lattice_jax.data.tokenizers.tokenizer import BPETokenizer, get_tokenizer
from lattice_jax.data.tokenizers.train_bpe import train_bpe

SAMPLE = DataConfig(source="books_sample", tokenizer="bpe_lossless:2048")
TEXT = "call me ishmael some years ago never mind how long precisely\n" * 40 + "the sea and the ship\n" * 40 + (
  "".join(chr(97 + i * j % 26) for i in range(26) for j in range(26)))


def test_every_byte_survives_the_round_trip():
  tokenizer = get_tokenizer(DataConfig(tokenizer="bytes"))
  raw = bytes(range(256))
  ids = tokenizer.encode(raw)
  np.testing.assert_array_equal(ids, np.arange(3, 259))
  assert tokenizer.decode(ids) == raw
  assert ids.max() < tokenizer.vocab_size


def test_special_ids_decode_to_nothing():
  tokenizer = get_tokenizer(DataConfig(tokenizer="bytes"))
  assert tokenizer.decode(np.array([1, 3 + ord("a"), 0, 2, 3 + ord("b")])) == b"ab"


@pytest.mark.parametrize("name", ["bytes", "symbols:8", "bpe_lossless:2048"])
def test_ids_that_no_token_has_decode_to_nothing(name):
  """A model may have more rows than there are tokens, and an untrained one draws them."""
  tokenizer = get_tokenizer(dataclasses.replace(SAMPLE, tokenizer=name))
  ids = tokenizer.encode(b"3 5").tolist()
  beyond = [tokenizer.vocab_size, tokenizer.vocab_size + 41, 10**6]
  assert tokenizer.decode(np.array([*ids, *beyond])) == tokenizer.decode(np.array(ids))


@pytest.mark.parametrize("name", ["byte", "bpe_lossless", "bpe_lossless:2k", "bpe_paper:10", "bpe_lossles:2048"])
def test_unknown_tokenizer_is_refused(name):
  with pytest.raises(ValueError, match=rf"^data.tokenizer='{name}' is unknown; use 'bytes', 'bpe_lossless:VOCAB' or"):
    get_tokenizer(DataConfig(tokenizer=name))


def test_shipped_lossless_bpe_gives_every_text_back():
  tokenizer = get_tokenizer(SAMPLE)
  for raw in read_raw(SAMPLE, "validation"):
    ids = tokenizer.encode(raw)
    assert ids.dtype == np.uint16 and ids.max() < tokenizer.vocab_size == 2048
    assert len(raw) / len(ids) > 3, "a token should be worth several bytes"
    assert tokenizer.decode(ids) == raw


@pytest.mark.parametrize("text", ["  two  spaces ", "\n\n\tcaf\u00e9\r\n", "\u4e2d\U0001f600\x00\x7f", "<s></s><unk>"])
def test_lossless_bpe_keeps_what_is_rare(text):
  tokenizer = get_tokenizer(SAMPLE)
  ids = tokenizer.encode(text.encode())
  assert tokenizer.decode(ids) == text.encode()
  assert not np.isin(ids, [tokenizer.pad_id, tokenizer.eos_id, 2]).any()


@pytest.mark.parametrize("name", ["bpe_lossless:300", "bpe_paper:300"])
@pytest.mark.parametrize("text", [TEXT, "", "\n\n a\n b \n", "a\r\nb\n\n", "e\n\u0301\n\ufeff\n\u2028 \u3000\n"])
def test_line_by_line_gives_the_tokens_of_the_whole_text(tmp_path, name, text):
  tokenizer = train(tmp_path, name)
  assert tokenizer.encode(text.encode()).tolist() == tokenizer._model.encode(text)


def test_paper_setting_loses_newlines(tmp_path):
  tokenizer = train(tmp_path, "bpe_paper:300")
  assert tokenizer.decode(tokenizer.encode(b"the sea\n\nand  the ship")) == b"the sea and the ship"


def test_training_is_deterministic_and_whole_or_nothing(tmp_path):
  for folder in ("a", "b"):
    train(tmp_path / folder, "bpe_lossless:300")
  assert (tmp_path / "a" / "m.model").read_bytes() == (tmp_path / "b" / "m.model").read_bytes()
  with pytest.raises(ValueError, match=r"no tokenizer bpe_lossless:9000 can be trained .*; use a smaller vocabulary"):
    train(tmp_path / "c", "bpe_lossless:9000")
  assert list((tmp_path / "c").iterdir()) == []


def train(folder, name):
  train_bpe([TEXT], name, folder / "m.model")
  return BPETokenizer(name, folder / "m.model")


def test_the_shipped_model_is_what_its_name_says(tmp_path):
  train_bpe([raw.decode() for raw in read_raw(SAMPLE, "train")], SAMPLE.tokenizer, tmp_path / "m.model")
  assert (tmp_path / "m.model").read_bytes() == (SAMPLES / "books_sample/bpe_lossless_2048.model").read_bytes()


def test_text_that_is_not_utf8_names_the_offset():
  with pytest.raises(ValueError, match=r"not UTF-8: byte 0xff at offset 3; convert it, or use data.tokenizer=bytes"):
    get_tokenizer(SAMPLE).encode(b"abc\xff")


def test_missing_model_names_the_command(tmp_path):
  data = dataclasses.replace(SAMPLE, tokenizer="bpe_paper:4096", path=str(tmp_path))
  with pytest.raises(ValueError, match=rf"run `python scripts/prepare_data.py books_sample --path {tmp_path} "
                                       rf"--tokenizer=bpe_paper:4096`"):
    get_tokenizer(data)


@pytest.mark.parametrize(("content", "message"), [
  (b"nonsense", "is not a sentencepiece model; remove it and train it again"),
  (None, "holds 2048 tokens, not the 4096 of data.tokenizer=bpe_lossless:4096"),
], ids=["damaged", "other-size"])
def test_wrong_model_is_refused(tmp_path, content, message):
  path = tmp_path / "m.model"
  path.write_bytes(content or (SAMPLES / "books_sample/bpe_lossless_2048.model").read_bytes())
  with pytest.raises(ValueError, match=message):
    BPETokenizer("bpe_lossless:4096", path)
