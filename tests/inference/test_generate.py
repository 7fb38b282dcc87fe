"""Generation is the sequence call, token by token: any prompt, any batch, any prefill."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.cache.convert import compress, uncompressed
from lattice_jax.cache.kv_cache import cache_bytes
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.inference.generate import SPECIAL_IDS, GenerateOptions, TokenStream, _cache_len, generate
from lattice_jax.inference.sampling import Sampling, sample_token
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import tree_bytes, unbox
from lattice_jax.types import whole_segment
from tests.thorough import further

MODEL = ModelConfig(
  vocab=40, dim=16, layers=2, pattern=("vq", "attention"), block="gau",
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=4, value_dim=4),
  vq=VQConfig(key_dim=4, value_dim=8, codes=5, block_len=4))
PROMPTS = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [], [30, 31, 32]]
LENGTH = 13
# several pieces of prompt; the rows end in different ones
OPTIONS = {"length": LENGTH, "prefill_len": 4}


SMALL = dataclasses.replace(MODEL, layers=1, pattern=("vq",))
ONE_BY_ONE = GenerateOptions(block_len=1, prefill_len=4, seed=3)


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
  "options", [*further({"temperature": 0.0}), {"temperature": 0.9, "top_k": 12, "top_p": 0.95}],
  ids=["greedy", "sampled"])
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


@contextlib.contextmanager
def compilations():
  """The programs that are compiled within."""
  compiled = []

  def listen(event, *args, **kwargs):
    compiled.extend([event] * event.endswith("backend_compile_duration"))

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield compiled
  jax.monitoring.unregister_event_duration_listener(listen)


def test_a_thousand_tokens_one_by_one_compile_nothing_more_and_neither_does_another_prompt():
  def read(prompt, length):
    stream = TokenStream(SMALL, make_variables(SMALL), [prompt, [6] * 4], length=length, options=ONE_BY_ONE)
    return sum(len(block[0]) for block in stream), stream.timing

  assert read([5] * 9, 2)[1].compile_seconds > 0
  with compilations() as compiled:
    count, timing = read([5] * 13, 1000)
    read([], 3)
  assert (count, timing.tokens) == (1000, 2 * 999)
  assert compiled == []


def stream(model, prompts, length, **options):
  options = GenerateOptions(prefill_len=4, **options)
  texts = TokenStream(model, make_variables(model), prompts, length=length, options=options)
  blocks = list(texts)
  for row, text in enumerate(texts.texts):
    assert text.ids == [id for block in blocks for id in block[row]]
  return texts


def test_a_text_ends_at_a_stop_id_or_where_the_context_does_and_the_others_go_on():
  whole = generate(SMALL, make_variables(SMALL), PROMPTS, seed=5, **OPTIONS)
  limit = 1 + len(PROMPTS[0]) + 2
  stop_id = next(int(id) for id in whole[2][1:] if id not in whole[0][:2])
  for block_len in (1, 16):
    texts = stream(SMALL, PROMPTS, LENGTH, seed=5, stop_ids=(stop_id,), limit=limit, block_len=block_len).texts
    for text, row, prompt in zip(texts, whole.tolist(), PROMPTS, strict=True):
      room = min(limit - 1 - len(prompt), LENGTH)
      is_stopped = stop_id in row[:room]
      assert text.ids == row[:row.index(stop_id) if is_stopped else room]
      assert text.finish == ("stop" if is_stopped else "context" if room < LENGTH else "length")
    assert {"stop", "context", "length"} == {text.finish for text in texts}


def test_a_row_that_was_ended_by_its_reader_gets_nothing_more():
  texts = TokenStream(SMALL, make_variables(SMALL), PROMPTS, length=6, options=ONE_BY_ONE)
  for index, block in enumerate(texts):
    assert bool(block[1]) == (index < 2)
    if index == 1:
      texts.end(1)
  assert [(len(text.ids), text.finish) for text in texts.texts] == [(6, "length"), (2, "stop"), (6, "length")]


def test_the_cache_of_softmax_attention_is_counted():
  timing = stream(MODEL, PROMPTS, LENGTH, seed=5, temperature=0.0).timing
  assert timing.cache_bytes == tree_bytes(jax.eval_shape(lambda: init_state(MODEL, len(PROMPTS), 64)))
  assert timing.first_token_seconds > 0


def test_the_first_token_waits_for_no_other_and_the_rest_come_in_blocks():
  texts = TokenStream(
    MODEL, make_variables(MODEL), [[5]], length=10, options=GenerateOptions(temperature=0.0, block_len=4))
  assert [len(new) for new, in texts] == [1, 4, 4, 1]
  assert texts.timing.tokens == 9


def test_caches_have_few_sizes_and_at_most_a_third_is_spare():
  sizes = {num: _cache_len(MODEL, num) for num in range(65, 8193)}
  assert len(set(sizes.values())) == 14 and sizes[8192] == 8192 and sizes[8191 - 2048] == 6144
  assert all(num <= size < 1.5 * num for num, size in sizes.items())


LAGKV = dataclasses.replace(
  MODEL, layers=1, pattern=("attention",), block="mlp", mlp_dim=8,
  cache=CacheConfig(policy="lagkv", sinks=1, lag=4, keep=1))


def test_a_cache_that_drops_tokens_is_compressed_after_the_prompt_and_is_small():
  variables = make_variables(LAGKV)
  texts = TokenStream(LAGKV, variables, PROMPTS, length=5, options=GenerateOptions(prefill_len=4, temperature=0.0))
  list(texts)
  decoding = dataclasses.replace(LAGKV, cache=dataclasses.replace(LAGKV.cache, call_len=1))
  assert texts.timing.cache_bytes == cache_bytes(decoding, len(PROMPTS), 64) < cache_bytes(LAGKV, len(PROMPTS), 64)
  whole, tokens = uncompressed(LAGKV), jnp.asarray([[1, *PROMPTS[0]]])
  logits_A, state = read(whole, variables, tokens, init_state(whole, 1, 32), whole_segment(1, tokens.shape[1]))
  state = compress(LAGKV, state, 32)
  for place, token in enumerate(texts.texts[0].ids, tokens.shape[1]):
    assert token == int(logits_A.at[jnp.array(SPECIAL_IDS)].set(-jnp.inf).argmax())
    logits_A, state = read(LAGKV, variables, jnp.asarray([[token]]), state, whole_segment(1, 1, place))


@functools.partial(jax.jit, static_argnums=0)
def read(model, variables, tokens, state, segment):
  """Logits after a row's last token, and the state."""
  output = Decoder(model).apply(variables, tokens, state, segment)
  return Decoder(model).apply(variables, output.features_BTD, method=Decoder.logits)[0, -1], output.state


def test_a_thousand_tokens_under_it_compile_nothing_more():
  stream = TokenStream(LAGKV, make_variables(LAGKV), [[5] * 9, [6] * 4], length=1000, options=ONE_BY_ONE)
  blocks = iter(stream)
  next(blocks)
  with compilations() as compiled:
    assert sum(len(block[0]) for block in blocks) == 999
  assert compiled == []


def test_a_prompt_may_be_read_in_as_little_room_as_the_calls_need():
  model = dataclasses.replace(LAGKV, cache=dataclasses.replace(LAGKV.cache, call_len=2))
  texts = TokenStream(model, make_variables(LAGKV), PROMPTS, length=5, options=GenerateOptions(temperature=0.0))
  list(texts)
  assert texts.timing.cache_bytes == cache_bytes(model, len(PROMPTS), 64)
  assert [len(text.ids) for text in texts.texts] == [5, 5, 5]


def test_a_text_is_never_silently_shorter():
  with pytest.raises(ValueError, match=r"ended before its 13 tokens \(context\); read it from a TokenStream"):
    generate(SMALL, make_variables(SMALL), PROMPTS, limit=13, **OPTIONS)


@pytest.mark.parametrize(
  ("prompts", "options", "message"), [
    ([], {}, "at least one prompt"), ([[40]], {}, "outside the vocabulary of 40"), ([[3]], {"length": 0}, "at least 1"),
    ([[3]], {"seed": [1, 2]}, "2 seeds"), ([[3]], {"temperature": -1.0}, "temperature"),
    ([[3], []], {"start_ids": ()}, "prompt of row 1 is empty, and this model starts"),
    ([[3], [4] * 9], {"limit": 10}, r"row 1 has 10 tokens, and the context holds 10 .*; shorten")],
  ids=["no-prompt", "vocabulary", "length", "seeds", "temperature", "empty-row", "too-long"])
def test_arguments_out_of_range_are_refused(prompts, options, message):
  with pytest.raises(ValueError, match=message):
    generate(MODEL, {}, prompts, **{"length": 3} | options)
