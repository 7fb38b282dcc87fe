"""Lines for the trainer of BPE models, by hand."""

from __future__ import annotations

from lattice_jax.data import bpe


def test_lines_are_cut_so_that_the_trainer_drops_none_and_nothing_is_lost():
  texts = ["one\n\ntwo", "€" * 3000]
  lines = list(bpe._lines(texts))
  assert lines[:2] == ["one", "two"] and "".join(lines[2:]) == texts[1]
  assert max(len(line.encode()) for line in lines) <= 4192
