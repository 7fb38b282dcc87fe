"""Runs on one's own text: they go on while it stays the same, and are scored by the tokenizer that they learned."""

from __future__ import annotations

import pytest

from lattice_jax.checkpoint import load_for_eval
from lattice_jax.evaluation.loaded_model import load_run
from lattice_jax.run_file import read_run
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


def test_a_run_on_own_text_goes_on_until_the_text_changes_and_keeps_its_tokenizer(tmp_path):
  book, other = write_book(tmp_path / "book.txt"), write_book(tmp_path / "other.txt", "log")
  config, workdir = config_of(book, tmp_path, train__steps=1), tmp_path / "run"
  loop.train(config, workdir)
  assert int(loop.train(config, workdir).step) == 1
  assert len(read_run(workdir)["tokenizer_sha256"]) == 64
  load_for_eval(workdir)
  # all have 300 tokens, so nothing but the figures would tell
  message = r"^the tokenizer bpe_lossless:300 of data.source=text:\S+ is not the one that \S+ was trained with: .*\.$"
  with pytest.raises(ValueError, match=message):
    load_run(workdir, step=None, overrides=[f"data.source=text:{other}"])
  write_book(book, "look")
  with pytest.raises(ValueError, match=message):
    load_for_eval(workdir)
  with pytest.raises(ValueError, match=rf"^data.source=text:{book} is not what .*run was trained on \(\w+ → \w+\); "
                                       r"restore it, or choose another --workdir\.$"):
    loop.train(config, workdir)


def test_a_text_too_short_for_a_sequence_is_one_sentence(tmp_path):
  book = write_book(tmp_path / "book.txt")
  config = tiny.make_config(data__source=f"text:{book}", data__seq_len=1 << 20, data__update_len=1 << 20)
  with pytest.raises(ValueError, match=r"^data.seq_len=1048576 is more than the [\d]+ tokens of text:\S+ train; use at "
                                       r"most \d+, or a larger data.source\.$"):
    loop.train(config, tmp_path / "run")
