"""Prompts that state something once and ask for it at the end, for any tokenizer; the seed decides everything.

A prompt has exactly as many tokens as its length says, including the question; the answer follows it. All prompts of
one trial share a haystack, so that it needs to be read only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lattice_jax.data.tokenizers.tokenizer import Tokenizer

_NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry")
_WORDS = (
  "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket", "kitchen",
  "ladder", "mirror", "needle", "orange", "pencil", "quarry", "river", "silver", "table", "umbrella", "valley",
  "window", "yellow")


@dataclass(frozen=True)
class PromptSizes:
  """length: tokens of the prompt. answer: digits, or words in "copy". depth: where the answer stands, in [0, 1]."""

  length: int
  answer: int
  depth: float


@dataclass(frozen=True, eq=False)
class RetrievalPrompt:
  """tokens: the prompt. answer: what should follow it. needle: [start, stop) of the answer within the prompt.

  fork: how many leading tokens are those of the trial's haystack; 0 if it has none.
  """

  tokens: np.ndarray
  answer: np.ndarray
  needle: tuple[int, int]
  fork: int


class Haystack:
  """A stretch of ordinary text, a different one for each trial."""

  def __init__(self, tokenizer: Tokenizer, text_ids: np.ndarray, *, trial: int, seed: int):
    """Reads `text_ids` cyclically from a place that depends on the trial and the seed."""
    self.tokenizer = tokenizer
    self._text_ids = text_ids
    self._start = int(np.random.default_rng([seed, trial, 0]).integers(len(text_ids)))
    self.random_key = [seed, trial, 1]

  def tokens(self, length: int) -> np.ndarray:
    """The first `length` tokens, beginning with the tokenizer's start ids."""
    start_ids = np.array(self.tokenizer.start_ids, np.int32)
    place = self._start + np.arange(max(length - len(start_ids), 0))
    return np.concatenate([start_ids, self._text_ids[place % len(self._text_ids)].astype(np.int32)])[:length]

  def encode(self, text: str) -> np.ndarray:
    return self.tokenizer.encode(text.encode()).astype(np.int32)


def passkey(haystack: Haystack, sizes: PromptSizes) -> RetrievalPrompt:
  """One number in ordinary text, and a question for it."""
  random = _random(haystack, sizes)
  return _one_of(haystack, sizes, "The pass key is", _digits(random, sizes.answer), [])


def needles(haystack: Haystack, sizes: PromptSizes) -> RetrievalPrompt:
  """The numbers of four people in ordinary text, and a question for one; the other three are evenly spread."""
  random = _random(haystack, sizes)
  asked, *others = random.choice(_NAMES, 4, replace=False).tolist()
  distractors = [f"The pass key of {name} is {_digits(random, sizes.answer)}" for name in others]
  return _one_of(haystack, sizes, f"The pass key of {asked} is", _digits(random, sizes.answer), distractors)


def copy(haystack: Haystack, sizes: PromptSizes) -> RetrievalPrompt:
  """A list of words in ordinary text, and a request to repeat it."""
  words = _random(haystack, sizes).choice(_WORDS, sizes.answer)
  return _one_of(haystack, sizes, "The list of words is", ", ".join(words), [])


def pairs(haystack: Haystack, sizes: PromptSizes) -> RetrievalPrompt:
  """Nothing but records, each with a value, and a question for the value of one."""
  random, encode = _random(haystack, sizes), haystack.encode
  head = np.concatenate([np.array(haystack.tokenizer.start_ids, np.int32), encode("Each record has a value.\n")])
  lines, keys, used = [], set(), len(head)
  while True:
    key = _digits(random, 6)
    said, value = encode(f"The value of record {key} is"), encode(f" {_digits(random, sizes.answer)}")
    line = np.concatenate([said, value, encode(".\n")])
    used += len(line)
    if used + len(said) > sizes.length:  # the question must still fit
      break
    if key not in keys:
      keys.add(key)
      lines.append((line, said, value))
  if not lines:
    raise ValueError(_too_short(sizes, "one record"))
  asked = round(sizes.depth * (len(lines) - 1))
  _, question, answer = lines[asked]
  body = np.concatenate([head, *(line for line, _, _ in lines)])
  fill = np.resize(encode("\n"), sizes.length - len(body) - len(question))
  first = len(head) + sum(len(line) for line, _, _ in lines[:asked]) + len(question)
  return RetrievalPrompt(
    tokens=np.concatenate([body, fill, question]), answer=answer, needle=(first, first + len(answer)), fork=0)


TASKS: dict[str, Callable[[Haystack, PromptSizes], RetrievalPrompt]] = {
  "passkey": passkey, "needles": needles, "copy": copy, "pairs": pairs}


def _one_of(
  haystack: Haystack, sizes: PromptSizes, saying: str, answer: str, distractors: Sequence[str]
) -> RetrievalPrompt:
  """The haystack with the statement at `depth` and evenly spaced distractors; the statement's start is the question."""
  encode = haystack.encode
  question, value = encode(f"\n{saying}"), encode(f" {answer}")
  asked = np.concatenate([question, value, encode(".\n")])
  inserted = [(index / len(distractors), encode(f"\n{text}.\n")) for index, text in enumerate(distractors)]
  inserted = sorted([*inserted, (sizes.depth, asked)], key=lambda pair: pair[0])
  first = len(haystack.tokenizer.start_ids)
  room = sizes.length - len(question) - sum(len(ids) for _, ids in inserted)
  if room <= first:
    raise ValueError(_too_short(sizes, "the statement and the question"))
  hay, parts, before, needle = haystack.tokens(room), [], 0, 0
  places = [first + round(depth * (room - first)) for depth, _ in inserted]
  for place, (_, ids) in zip(places, inserted, strict=True):
    parts.append(hay[before:place])
    if ids is asked:
      needle = sum(map(len, parts)) + len(question)
    parts.append(ids)
    before = place
  return RetrievalPrompt(
    tokens=np.concatenate([*parts, hay[before:], question]), answer=value, needle=(needle, needle + len(value)),
    fork=places[0])


def _random(haystack: Haystack, sizes: PromptSizes) -> np.random.Generator:
  return np.random.default_rng([*haystack.random_key, sizes.length, sizes.answer, round(1000 * sizes.depth)])


def _digits(random: np.random.Generator, number: int) -> str:
  return "".join(map(str, random.integers(0, 10, number).tolist()))


def _too_short(sizes: PromptSizes, what: str) -> str:
  return f"a prompt of {sizes.length} tokens has no room for {what}; use longer prompts or shorter answers."
