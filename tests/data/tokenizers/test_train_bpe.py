"""Lines for the trainer of BPE models, by hand."""

from __future__ import annotations

from lattice_jax.data.tokenizers import train_bpe
from lattice_jax.data.tokenizers.tokenizer import BPETokenizer


def test_lines_are_cut_so_that_the_trainer_drops_none_and_nothing_is_lost():
  texts = ["one\n\ntwo", "€" * 3000]
  lines = list(train_bpe._lines(texts))
  assert lines[:2] == ["one", "two"] and "".join(lines[2:]) == texts[1]
  assert max(len(line.encode()) for line in lines) <= 4192


def test_a_lossless_model_knows_characters_that_it_was_not_trained_on(tmp_path):
  name = "bpe_lossless:300"
  text = "the ship sails on the sea\nand the sea is wide, wider than the land\n"
  train_bpe.train_bpe([text] * 20, name, tmp_path / "m.model")
  tokenizer = BPETokenizer(name, tmp_path / "m.model")
  raw = "  the €\n\n sea".encode()
  assert tokenizer.decode(tokenizer.encode(raw)) == raw
