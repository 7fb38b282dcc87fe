"""Prompts with an answer, for any tokenizer, from a fixed seed: a code word to copy, and demonstrations of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lattice_jax.data.anchors import AnchorTokenizer
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.inspect.anchors.texts import Row
from lattice_jax.types import MARK_ANCHOR

DISTANCES = (1, 2, 4, 8, 16)  # sentences from the code word to the place where it is asked for
SHOTS = (0, 1, 2, 4, 8)
WORDS, LETTERS = "common words", "random letters"
_NUM_WORDS, _NUM_LETTERS, _MOST = 3, 6, max(SHOTS)

_COMMON = (
  "apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket", "kitchen",
  "ladder", "mirror", "needle", "orange", "pencil", "river", "silver", "table", "valley", "window", "yellow", "paper",
  "winter")
_FILLERS = (
  "The shop on the corner opens at nine.", "Most of the children walk to school.", "It rained again in the afternoon.",
  "The old clock in the hall is slow.", "Her brother works in the next town.", "They had soup and bread for lunch.",
  "The train was late this morning.", "A cat slept on the warm stones.", "He forgot his coat in the office.",
  "The road to the lake is closed.", "Nobody had seen the new film yet.", "The baker sold the last loaf.",
  "Two men carried the piano upstairs.", "The letters came before breakfast.", "We painted the fence last week.",
  "The wind moved the leaves a little.", "She bought flowers for the table.", "The dog waited beside the door.",
  "Our neighbours are away until Monday.", "The lamp in the yard was broken.")
_OPPOSITES = (
  ("hot", "cold"), ("big", "small"), ("up", "down"), ("open", "closed"), ("fast", "slow"), ("good", "bad"),
  ("old", "new"), ("full", "empty"), ("high", "low"), ("light", "dark"), ("hard", "soft"), ("early", "late"),
  ("rich", "poor"), ("left", "right"), ("day", "night"), ("true", "false"), ("wet", "dry"), ("long", "short"),
  ("first", "last"), ("black", "white"), ("buy", "sell"), ("win", "lose"), ("push", "pull"), ("start", "end"))


class Example(NamedTuple):
  question: str
  answer: str


Drawn = tuple[list[Example], Example]  # what is shown, and what is asked


def recall_prompt(tokenizer: Tokenizer, kind: str, distance: int, trial: int, seed: int, *, is_shown: bool) -> Row:
  """A sentence with a code word, other sentences, and the sentence again up to the code word, which is the answer.

  distance: sentences from the one to the other. Without `is_shown` another sentence stands in the place of the first.
  """
  random = np.random.default_rng([seed, trial, kind == LETTERS])  # the same code word at every distance
  if kind == LETTERS:
    answer = "".join(random.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), _NUM_LETTERS))
  else:
    answer = " ".join(random.choice(_COMMON, _NUM_WORDS, replace=False))
  first, instead, *others = (f"{line}\n" for line in random.permutation(_FILLERS))
  said = "The code word of the day is"
  shown = [said, f" {answer}", ".\n"] if is_shown else [instead]
  return _row(tokenizer, [first, *shown, *others[:distance - 1], said], f" {answer}")


def demonstration_prompt(tokenizer: Tokenizer, task: str, shots: int, trial: int, seed: int) -> Row:
  """Examples, a line each, and a question. The last token of a line is an anchor, and no other token is one."""
  random = np.random.default_rng([seed, trial, list(TASKS).index(task)])  # the same question after any number
  examples, asked = TASKS[task](random, shots)
  is_added = isinstance(tokenizer, AnchorTokenizer)
  plain = tokenizer.base if is_added else tokenizer  # which would also put anchors elsewhere
  pieces, marks = [], []
  for example in examples:
    line = _encode(plain, [f"{example.question} ->", f" {example.answer}", "\n"])
    line = np.append(line, tokenizer.anchor_id).astype(np.int32) if is_added else line
    pieces.append(line)
    marks.append(np.where(np.arange(len(line)) == len(line) - 1, MARK_ANCHOR, 0))
  row = _row(plain, [f"{asked.question} ->"], f" {asked.answer}")
  before = sum(map(len, pieces))
  return Row(
    np.concatenate([*pieces, row.ids]), (before + row.asked[0], before + row.asked[1]),
    np.concatenate([*marks, np.zeros(len(row.ids))]).astype(np.int8))


def _uppercase(random: np.random.Generator, shots: int) -> Drawn:
  words = random.choice(_COMMON, _MOST + 1, replace=False).tolist()
  return _last([Example(word, word.upper()) for word in words], shots)


def _opposites(random: np.random.Generator, shots: int) -> Drawn:
  chosen = random.choice(len(_OPPOSITES), _MOST + 1, replace=False)
  return _last([Example(*_OPPOSITES[index]) for index in chosen], shots)


def _patterns(random: np.random.Generator, shots: int) -> Drawn:
  """The next word of two words in turn."""
  pairs = [random.choice(_COMMON, 2, replace=False).tolist() for _ in range(_MOST + 1)]
  return _last([Example(f"{one} {other} {one} {other} {one}", other) for one, other in pairs], shots)


def _pairs(random: np.random.Generator, shots: int) -> Drawn:
  """Words that stand for arbitrary others; what is asked was shown, if anything was."""
  words = random.choice(_COMMON, 2 * _MOST, replace=False).tolist()
  examples = [Example(*words[index:index + 2]) for index in range(0, len(words), 2)]
  shown = examples[_MOST - shots:]
  return shown, (shown or examples)[int(random.integers(max(shots, 1)))]


def _last(examples: list[Example], shots: int) -> Drawn:
  """The question is the last example, and those before it are shown."""
  return examples[_MOST - shots:_MOST], examples[_MOST]


TASKS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
  "uppercase": _uppercase, "opposites": _opposites, "patterns": _patterns, "pairs": _pairs}


def _row(tokenizer: Tokenizer, prompt: Sequence[str], answer: str) -> Row:
  ids, asked = _encode(tokenizer, prompt), _encode(tokenizer, [answer])
  return Row(np.concatenate([ids, asked]), (len(ids), len(ids) + len(asked)))


def _encode(tokenizer: Tokenizer, pieces: Sequence[str]) -> np.ndarray:
  """Piece by piece, so that an answer has the same tokens wherever it stands."""
  return np.concatenate([tokenizer.encode(piece.encode()).astype(np.int32) for piece in pieces])
