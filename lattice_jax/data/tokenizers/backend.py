"""How a pretrained model cuts text into pieces: the interface, and what the `tokenizers` library reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import tokenizers
from tokenizers import processors

from lattice_jax.shown import reason_of


@runtime_checkable
class Backend(Protocol):
  """vocab_size: one more than the largest id. start_ids: what stands before a text."""

  vocab_size: int
  start_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Special tokens that the text spells out become their ids, where the model has it so; nothing is added."""

  def decode(self, ids: Sequence[int]) -> str:
    """Special tokens give nothing, and so do ids that no piece has: embeddings may have more rows than there are."""

  def id_of(self, token: str) -> int | None:
    """None where there is no such token."""

  def save(self, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """(the files that were written, what tokenizer_config.json must say of them for `transformers`)."""


class FastBackend:
  """`tokenizers`: what a tokenizer.json holds."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    """Raises ValueError where it has no tokens."""
    self.tokenizer = tokenizer
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if not ids:
      raise ValueError("a tokenizer.json without a token was given; get the file again.")
    self.vocab_size = 1 + max(ids)
    self.start_ids = tuple(_call(tokenizer.encode, "", add_special_tokens=True).ids)

  def encode(self, text: str) -> list[int]:
    return _call(self.tokenizer.encode, text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    return _call(self.tokenizer.decode, list(ids), skip_special_tokens=True)

  def id_of(self, token: str) -> int | None:
    return self.tokenizer.token_to_id(token)

  def save(self, folder: Path) -> tuple[list[str], dict[str, Any]]:
    self.tokenizer.save(str(folder / "tokenizer.json"))
    cutting = json.loads(self.tokenizer.to_str())["pre_tokenizer"] or {}
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": self.tokenizer.encode_special_tokens}
    # where nothing is said, version 4 turns it off
    return ["tokenizer.json"], facts | {name: cutting[name] for name in ("add_prefix_space",) if name in cutting}


def starts_with(token: str, id: int) -> processors.PostProcessor:
  """Puts the token before a text."""
  return processors.TemplateProcessing(
    single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, id)])


def _call(function: Callable[..., Any], *arguments: Any, **options: bool) -> Any:
  """Raises ValueError where the library fails: an expression that takes too long is a panic, and no Exception."""
  try:
    return function(*arguments, **options)
  except BaseException as error:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
      raise
    raise ValueError(
      f"the tokenizer fails at this text ({reason_of(error)}); shorten its longest words, or get the tokenizer again."
    ) from error
