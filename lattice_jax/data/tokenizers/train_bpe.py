"""Trains sentencepiece BPE models, in one of two settings, which every result names.

lossless: the bytes come back exactly; newlines are tokens of their own and rare characters fall back to bytes.
paper: sentencepiece's defaults, as for the published PG-19 results; newlines and runs of spaces are lost, so the text
  to predict is shorter than the text whose words are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from lattice_jax.files import replacing

SETTINGS: dict[str, dict[str, Any]] = {
  "bpe_lossless": {
    "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False,
    "byte_fallback": True, "user_defined_symbols": ["\n"]},
  "bpe_paper": {"character_coverage": 1.0},
}
# The trainer silently drops longer lines.
_MAX_LINE_BYTES = 4192
# The trainer holds its lines in memory; of more lines than this it draws a random sample.
_MAX_LINES = 10_000_000


def train_bpe(texts: Iterable[str], tokenizer: str, target: Path) -> None:
  """Writes the model of `tokenizer`, such as "bpe_lossless:32000", to `target`, atomically.

  Its ids are 0 pad, 1 eos, 2 unknown, and no bos. The same texts give the same model.

  Raises ValueError if the texts are too few for the vocabulary.
  """
  setting, vocab = parse_name(tokenizer)
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    with replacing(target) as partial, partial.open("wb") as file:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(texts), model_writer=file, model_type="bpe", vocab_size=vocab, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, input_sentence_size=_MAX_LINES, shuffle_input_sentence=True, num_threads=1,
        max_sentence_length=_MAX_LINE_BYTES, minloglevel=2, **SETTINGS[setting])
  except RuntimeError as error:
    raise ValueError(
      f"no tokenizer {tokenizer} can be trained on these texts ({str(error).strip().splitlines()[-1]}); use a smaller "
      "vocabulary.") from error


def parse_name(tokenizer: str) -> tuple[str, int]:
  """("bpe_lossless", 32000) for "bpe_lossless:32000". Raises ValueError for other names."""
  setting, _, vocab = tokenizer.partition(":")
  if setting not in SETTINGS or not vocab.isdigit() or int(vocab) < 300:
    raise ValueError(
      f"data.tokenizer={tokenizer!r} is unknown; use 'bytes', 'bpe_lossless:VOCAB' or 'bpe_paper:VOCAB' with a "
      "VOCAB of at least 300, such as 'bpe_lossless:32000'.")
  return setting, int(vocab)


def _lines(texts: Iterable[str]) -> Iterator[str]:
  """The lines for the trainer: no empty ones, and long ones cut (a character has at most four bytes)."""
  step = _MAX_LINE_BYTES // 4
  for text in texts:
    for line in text.split("\n"):
      for start in range(0, len(line), step):
        yield line[start:start + step]
