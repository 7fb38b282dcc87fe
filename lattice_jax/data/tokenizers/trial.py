"""A stranger's tokenizer tried on runs of every character: by these, expressions that take time without end show it."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import sentencepiece
import tokenizers

_RUN_LEN = 60  # an expression that doubles its work with each character never comes to the end of so many
_CHARACTERS = "".join(map(chr, range(128))) + "éжא東ア½🙂\u0301\u200b"


def answer(request: Mapping[str, str]) -> None:
  """Reads the tokenizer, encodes the text and decodes what came of it; for `limited.call_in_sandbox`."""
  if "json" in request:
    tokenizer = tokenizers.Tokenizer.from_str(request["json"])
    tokenizer.decode(tokenizer.encode(trial_text()).ids)
  else:
    model = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(request["model"]))
    model.decode(model.encode(trial_text()))


def trial_text() -> str:
  """Runs of single characters, then of two in turn, and every character once, which an expression may wait for."""
  runs = [character * _RUN_LEN for character in _CHARACTERS]
  pairs = [(one + other) * (_RUN_LEN // 2) for one in "aA1 .\n" for other in "aA1 .\n" if one != other]
  return "".join([*runs, *pairs, _CHARACTERS])
