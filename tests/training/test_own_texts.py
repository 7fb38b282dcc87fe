"""Runs on one's own text: they go on while it stays the same, and are judged by the tokenizer that they learned."""

from __future__ import annotations

import pytest

from lattice_jax.checkpoint import load_for_eval, read_run
from lattice_jax.evaluation import command
from lattice_jax.training import loop
from tests.training import tiny


@pytest.fixture(autouse=True)
def _tiny_decoder(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)


def write_book(path, word="book"):
  path.write_text("".join(f"Line {number} of a {word}.\n" for number in range(400)))
  return path


def config_of(path, tmp_path, **changes):
  return tiny.make_config(
    data__source=f"text:{path}", data__path=str(tmp_path / "data"), data__tokenizer="bpe_lossless:300",
    model__vocab=300, **changes)


def test_a_run_on_own_text_goes_on_until_the_text_changes(tmp_path):
  book = write_book(tmp_path / "book.txt")
  loop.train(config_of(book, tmp_path, train__steps=1), tmp_path / "run")
  assert int(loop.train(config_of(book, tmp_path, train__steps=2), tmp_path / "run").step) == 2
  write_book(book, "look")
  with pytest.raises(ValueError, match=rf"^data.source=text:{book} is not what .*run was trained on \(\w+ → \w+\); "
                                       r"restore it, or choose another --workdir\.$"):
    loop.train(config_of(book, tmp_path, train__steps=3), tmp_path / "run")


def test_a_tokenizer_of_other_texts_is_refused_to_a_run(tmp_path):
  """Both have 300 tokens, so nothing but the figures would tell."""
  book, other = write_book(tmp_path / "book.txt"), write_book(tmp_path / "other.txt", "log")
  loop.train(config_of(book, tmp_path, train__steps=1), tmp_path / "run")
  assert len(read_run(tmp_path / "run")["tokenizer_sha256"]) == 64
  load_for_eval(tmp_path / "run")
  message = r"^the tokenizer bpe_lossless:300 of data.source=text:\S+ is not the one that \S+ was trained with: .*\.$"
  with pytest.raises(ValueError, match=message):
    command.load(tmp_path / "run", step=None, overrides=[f"data.source=text:{other}"])
  write_book(book, "look")
  with pytest.raises(ValueError, match=message):
    load_for_eval(tmp_path / "run")


def test_a_text_too_short_for_a_sequence_is_one_sentence(tmp_path):
  book = write_book(tmp_path / "book.txt")
  config = tiny.make_config(data__source=f"text:{book}", data__seq_len=1 << 20, data__update_len=1 << 20)
  with pytest.raises(ValueError, match=r"^data.seq_len=1048576 is more than the [\d]+ tokens of text:\S+ train; use at "
                                       r"most \d+, or a larger data.source\.$"):
    loop.train(config, tmp_path / "run")
