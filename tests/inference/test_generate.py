"""Generation is the sequence call, token by token: any prompt, any batch, any prefill."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import AttentionConfig, ModelConfig, VQConfig
from lattice_jax.inference import generate as generation
from lattice_jax.inference.generate import SPECIAL_IDS, generate
from lattice_jax.inference.sampling import Sampling, sample_token
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import unbox
from lattice_jax.types import whole_segment

MODEL = ModelConfig(
  vocab=40, dim=16, layers=2, pattern=("vq", "attention"), block="gau",
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4),
  vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=4))
PROMPTS = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [], [30, 31, 32]]
LENGTH = 13
# several pieces of prompt; the rows end in different ones
OPTIONS = {"length": LENGTH, "prefill_len": 4}


SMALL = dataclasses.replace(MODEL, layers=1, pattern=("vq",))


@functools.lru_cache
def make_variables(model):
  # three times the initial weights: a text that hangs on its past, and no ties
  return jax.jit(lambda: jax.tree.map(lambda leaf: 3 * leaf, unbox(init_variables(model, jax.random.key(0)))))()


@jax.jit
def all_logits(variables, tokens):
  output = Decoder(MODEL).apply(
    variables, tokens, init_state(MODEL, len(PROMPTS)), whole_segment(len(PROMPTS), tokens.shape[1]))
  return Decoder(MODEL).apply(variables, output.features_BTD, method=Decoder.logits)


def teacher_forced_logits(variables, texts):
  """[LENGTH, A] for each prompt: what one call over eos, prompt and text says before each token of the text."""
  tokens = np.zeros((len(PROMPTS), 1 + max(map(len, PROMPTS)) + LENGTH), np.int32)
  for row, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
    tokens[row, :1 + len(prompt) + LENGTH] = [1, *prompt, *text]
  logits_BTA = all_logits(variables, tokens)
  return [logits_TA[len(prompt):len(prompt) + LENGTH] for logits_TA, prompt in zip(logits_BTA, PROMPTS, strict=True)]


@pytest.mark.parametrize(
  "options", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 12, "top_p": 0.95}], ids=["greedy", "sampled"])
def test_every_token_is_drawn_from_what_one_call_over_the_text_says(options):
  variables = make_variables(MODEL)
  texts = generate(MODEL, variables, PROMPTS, seed=5, **OPTIONS, **options)
  sampling = Sampling(banned=SPECIAL_IDS, **options)
  for row, (logits_TA, text) in enumerate(zip(teacher_forced_logits(variables, texts), texts, strict=True)):
    keys_T = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5 + row), jnp.arange(LENGTH))
    np.testing.assert_array_equal(sample_token(logits_TA, keys_T, sampling), text)


def test_a_row_is_the_same_alone_and_with_any_prefill():
  together = generate(SMALL, make_variables(SMALL), PROMPTS, seed=[3, 4, 5], **OPTIONS)
  alone = generate(SMALL, make_variables(SMALL), PROMPTS[2:], seed=5, length=LENGTH, prefill_len=64)
  np.testing.assert_array_equal(alone[0], together[2])


def test_seeds_decide_and_special_tokens_are_never_drawn():
  def text(seed, **options):
    return generate(SMALL, make_variables(SMALL), [[5]] * 4, seed=seed, length=64, temperature=50.0, **options)

  assert np.array_equal(text(0), text(0))
  assert not np.array_equal(text(0), text(4))
  assert len(np.unique(text(0), axis=0)) == 4
  assert not np.isin(text(0), SPECIAL_IDS).any()
  assert np.isin(text(0, banned=()), SPECIAL_IDS).any()


def test_prefill_and_decoding_compile_once_whatever_the_prompts():
  before = generation._prefill._cache_size(), generation._decode._cache_size()
  for prompt in ([], [5] * 3, [5] * 9):
    generate(SMALL, make_variables(SMALL), [prompt + [6] * 4] * 2, length=5, prefill_len=4)
  assert (generation._prefill._cache_size(), generation._decode._cache_size()) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize(
  ("prompts", "options", "message"), [
    ([], {}, "at least one prompt"), ([[40]], {}, "outside the vocabulary of 40"), ([[3]], {"length": 0}, "at least 1"),
    ([[3]], {"seed": [1, 2]}, "2 seeds"), ([[3]], {"temperature": -1.0}, "temperature")],
  ids=["no-prompt", "vocabulary", "length", "seeds", "temperature"])
def test_arguments_out_of_range_are_refused(prompts, options, message):
  with pytest.raises(ValueError, match=message):
    generate(MODEL, {}, prompts, **{"length": 3} | options)
