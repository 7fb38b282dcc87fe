"""Tries a stranger's tokenizer on runs of characters, which reveal regular expressions that take endless time."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import sentencepiece
import tokenizers

_RUN_LEN = 60  # too long for an expression whose work doubles with each character
_CHARACTERS = "".join(map(chr, range(128))) + "éжא東ア½🙂\u0301\u200b"


def answer(request: Mapping[str, str]) -> None:
  """Reads the tokenizer, encodes the trial text and decodes the result; for `limited.call_in_sandbox`."""
  if "json" in request:
    tokenizer = tokenizers.Tokenizer.from_str(request["json"])
    tokenizer.decode(tokenizer.encode(trial_text()).ids)
  else:
    model = sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(request["model"]))
    model.decode(model.encode(trial_text()))


def trial_text() -> str:
  """Runs of one character, runs of two alternating ones, and every character once, to end any match."""
  runs = [character * _RUN_LEN for character in _CHARACTERS]
  pairs = [(one + other) * (_RUN_LEN // 2) for one in "aA1 .\n" for other in "aA1 .\n" if one != other]
  return "".join([*runs, *pairs, _CHARACTERS])
