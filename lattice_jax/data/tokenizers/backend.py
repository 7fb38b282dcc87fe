"""The tokenizer backend of a pretrained model: the interface, and the backend of the `tokenizers` library."""

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
  """vocab_size: one more than the largest id. start_ids: the ids before every text."""

  vocab_size: int
  start_ids: tuple[int, ...]

  def encode(self, text: str) -> list[int]:
    """Adds no tokens. Special tokens that the text spells out become their ids if the model wants that."""

  def decode(self, ids: Sequence[int]) -> str:
    """Special tokens give no text, nor do ids without a piece: embeddings may have more rows than pieces."""

  def id_of(self, token: str) -> int | None:
    """The id of a token, or None if there is no such token."""

  def save(self, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """(names of the files written, entries of tokenizer_config.json with which `transformers` reads them)."""


class FastBackend:
  """The `tokenizers` library, which reads tokenizer.json."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    """Raises ValueError if it has no tokens."""
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
    # version 4 turns add_prefix_space off if nothing is said
    return ["tokenizer.json"], facts | {name: cutting[name] for name in ("add_prefix_space",) if name in cutting}


def starts_with(token: str, id: int) -> processors.PostProcessor:
  """Puts the token before every text."""
  return processors.TemplateProcessing(
    single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, id)])


def _call(function: Callable[..., Any], *arguments: Any, **options: bool) -> Any:
  """Raises ValueError if the library fails. A regular expression that takes too long is a panic, not an Exception."""
  try:
    return function(*arguments, **options)
  except BaseException as error:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
      raise
    raise ValueError(
      f"the tokenizer fails at this text ({reason_of(error)}); shorten its longest words, or get the tokenizer again."
    ) from error
