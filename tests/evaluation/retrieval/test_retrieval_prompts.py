"""Prompts of retrieval tasks: their length, where the answer stands, what the trials share, and that seeds decide."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.config import DataConfig
from lattice_jax.data.tokenizers.tokenizer import ByteTokenizer, get_tokenizer
from lattice_jax.evaluation.retrieval.prompts import TASKS, Haystack, PromptSizes

TEXT = b"It was a dark and stormy night; the rain fell in torrents. " * 20
TOKENIZERS = {
  "bytes": ByteTokenizer(),
  "bpe": get_tokenizer(DataConfig(source="books_sample", tokenizer="bpe_lossless:2048"))}
DEPTHS = (0.0, 0.3, 1.0)


def make(task, sizes, *, trial=0, seed=0, tokenizer="bytes"):
  tokenizer = TOKENIZERS[tokenizer]
  haystack = Haystack(tokenizer, tokenizer.encode(TEXT), trial=trial, seed=seed)
  return TASKS[task](haystack, sizes), haystack


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_the_answer_stands_where_it_is_said_to_and_the_prompt_is_as_long_as_asked(task, tokenizer):
  for depth in DEPTHS:
    prompt, haystack = make(task, PromptSizes(length=600, answer=5, depth=depth), tokenizer=tokenizer)
    assert len(prompt.tokens) == 600
    start, stop = prompt.needle
    np.testing.assert_array_equal(prompt.tokens[start:stop], prompt.answer)
    np.testing.assert_array_equal(prompt.tokens[:prompt.fork], haystack.tokens(600)[:prompt.fork])
    # what was said before the answer is what the prompt ends with
    question = haystack.tokenizer.decode(prompt.tokens).decode().rpartition("\n")[2]
    assert haystack.tokenizer.decode(prompt.tokens[:start]).decode().endswith(question)
    answer = haystack.tokenizer.decode(prompt.answer).decode()
    assert len(answer.split(", ") if task == "copy" else answer.strip()) == 5
    assert abs(start / 600 - depth) < 0.2


@pytest.mark.parametrize("task", TASKS)
def test_trials_seeds_and_depths_differ_and_all_else_is_repeated(task):
  sizes = PromptSizes(length=600, answer=7, depth=0.5)
  first = make(task, sizes)[0].tokens
  np.testing.assert_array_equal(make(task, sizes)[0].tokens, first)
  for other in (make(task, sizes, trial=1), make(task, sizes, seed=1), make(task, PromptSizes(600, 7, 0.25))):
    assert (other[0].tokens != first).any()
    assert other[0].answer.tolist() != make(task, sizes)[0].answer.tolist()


def test_only_one_of_several_numbers_is_asked_for():
  prompt, haystack = make("needles", PromptSizes(length=700, answer=7, depth=0.6))
  text = haystack.tokenizer.decode(prompt.tokens).decode()
  assert text.count("The pass key of") == 5
  asked = text.rsplit("The pass key of", 1)[1]
  assert text.count(f"The pass key of{asked}") == 2
  assert f"The pass key of{asked}{haystack.tokenizer.decode(prompt.answer).decode()}." in text


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_without_room_is_refused(task):
  with pytest.raises(ValueError, match="a prompt of 40 tokens has no room for"):
    make(task, PromptSizes(length=40, answer=7, depth=0.5))
