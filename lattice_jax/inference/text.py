"""Turns ids into text while they are drawn: only whole characters, and nothing beyond a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.inference.generate import GenerateOptions, Timing, TokenStream

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character decode to
_CONTEXT = 8  # ids before a text that may decide how it starts, such as the space before a sentencepiece word


class TextPieces:
  """One row's text, given out as soon as it is certain."""

  def __init__(self, tokenizer: Tokenizer, before: Sequence[int], stop_strings: Sequence[str] = ()):
    self.is_stopped = False
    self._tokenizer = tokenizer
    self._stop_strings = tuple(stop_strings)
    self._ids = list(before)[-_CONTEXT:]
    self._start, self._read = 0, len(self._ids)  # ids [start, read) are those whose text was taken last
    self._held = ""

  def push(self, ids: Sequence[int]) -> str:
    """The text that has become certain. After a stop string, `is_stopped` holds and no more text comes."""
    self._ids += ids
    text = self._new_text()
    return "" if text.endswith(_UNFINISHED) else self._take(text)

  def finish(self) -> str:
    """The text that was held back, once the row has ended."""
    rest = self._take(self._new_text())
    rest, self._held = rest + self._held, ""
    return rest

  def _new_text(self) -> str:
    """Decodes with the ids before, because a tokenizer may strip the start of a text."""
    known, whole = (
      self._tokenizer.decode(np.array(self._ids[self._start:stop], np.int64)).decode(errors="replace")
      for stop in (self._read, None))
    return whole[len(known):]

  def _take(self, text: str) -> str:
    if self.is_stopped:
      return ""
    self._start, self._read = self._read, len(self._ids)
    text = self._held + text
    ends = [place for place in map(text.find, self._stop_strings) if place >= 0]
    if ends:
      self.is_stopped, self._held = True, ""
      return text[:min(ends)]
    certain = len(text) - max((_overlap(text, stop) for stop in self._stop_strings), default=0)
    self._held = text[certain:]
    return text[:certain]


def _overlap(text: str, stop: str) -> int:
  """How many characters at the end of the text may be the start of a stop string."""
  return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


@dataclass(frozen=True)
class Written:
  """texts: without the prompts. finishes: why each ended, as in `GeneratedRow`. num_tokens: the length of each text.

  window_log: of windows that the prompts chose, as JSON can hold it; see `prompt_windows`.
  """

  texts: tuple[str, ...]
  finishes: tuple[str, ...]
  num_tokens: tuple[int, ...]
  timing: Timing
  window_log: tuple[dict[str, Any], ...] = ()


def write_texts(
  model: ModelConfig, variables: Any, tokenizer: Tokenizer, prompts: Sequence[str], *, length: int,
  options: GenerateOptions, stop_strings: Sequence[str] = (),
  show: Callable[[int, str], None] = lambda row, piece: None,
) -> Written:
  """What the model writes after each prompt; `show(row, piece)` is called with each piece as it comes.

  A stop string ends a row as a stop id does, and is no part of its text.

  Raises:
    ValueError: as `TokenStream`, or a stop string is empty.
  """
  if "" in stop_strings:
    raise ValueError("an empty stop string would end every text before it starts; leave it out.")
  rows = [tokenizer.encode(prompt.encode()) for prompt in prompts]
  stream = TokenStream(model, variables, rows, length=length, options=options)
  pieces = [TextPieces(tokenizer, row.tolist(), stop_strings) for row in rows]
  texts = [""] * len(rows)

  def add(row: int, piece: str) -> None:
    if piece:
      texts[row] += piece
      show(row, piece)
    if pieces[row].is_stopped:
      stream.end(row)

  for block in stream:
    for row, ids in enumerate(block):
      add(row, pieces[row].push(ids))
  for row, rest in enumerate(pieces):
    add(row, rest.finish())
  return Written(
    texts=tuple(texts), finishes=tuple(str(text.finish) for text in stream.texts),
    num_tokens=tuple(len(text.ids) for text in stream.texts), timing=stream.timing,
    window_log=tuple(stream.window_log))
