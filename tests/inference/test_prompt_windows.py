"""Windows chosen after a prompt and lowered while a text is written: as if they had always been, and all logged."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.inference import blocks
from lattice_jax.inference.generate import GenerateOptions, TokenStream
from lattice_jax.inference.prompt_windows import (
  PromptWindows,
  TextWindows,
  _ladder,
  _widest,
  reading_model,
  windows_of,
)
from lattice_jax.inference.session import Session
from lattice_jax.inference.window_choice import Thresholds, Watch
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.memories.local.convert import as_local, lower
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox
from tests.contract.harness import quick_jit

ROOM, LENGTH, VOCAB = 64, 24, 31
LOCAL = LocalConfig(sinks=2, rungs=(4, 8), windows=(4, 0, 8, 4), far="mean", picks=2, pick_lag=2)
MODEL = ModelConfig(
  vocab=VOCAB, dim=12, layers=2, pattern=("local",), block="mlp", mlp_dim=8, local=LOCAL,
  attention=AttentionConfig(heads=4, kv_heads=2, key_dim=6, value_dim=5))
NEVER = Thresholds(up=1.0, down=0.0)
AT_ONCE = Thresholds(up=1.0, down=0.99, down_steps=2, mean_steps=1, pause=4)


@functools.cache
def variables():
  return quick_jit(lambda: jax.tree.map(lambda leaf: 2 * leaf, unbox(init_variables(MODEL, jax.random.key(0)))))()


def prompt(length, seed=0):
  return np.random.default_rng(seed).integers(3, VOCAB, length).astype(np.int32)


def stream(windows, *, prompts=(20, 9), length=LENGTH, model=MODEL, block_len=4):
  return TokenStream(
    model, variables(), [prompt(n) for n in prompts], length=length,
    options=GenerateOptions(temperature=0.0, windows=windows, block_len=block_len))


def written(stream):
  for _ in stream:
    pass
  return [text.ids for text in stream.texts]


def test_a_full_cache_goes_on_as_the_rings_that_full_windows_make():
  """Cut to the windows, and cut once more."""
  def read(model):
    session = Session(model, variables(), batch=2, max_len=ROOM, chunk_len=16)
    session.read([prompt(30), prompt(11)])
    return session.state.memory

  whole = replace(MODEL, local=replace(LOCAL, windows=(0,)))
  got = as_local(MODEL, read(reading_model(MODEL, PromptWindows(probes=3))), ROOM)
  want = lower(whole, MODEL, read(whole), ROOM)
  smaller = replace(MODEL, local=replace(LOCAL, windows=(4,)))
  for pair in ((got, want), (lower(MODEL, smaller, got, ROOM), lower(whole, smaller, read(whole), ROOM))):
    one, other = (tree["block_0"].replace(far_share_B=None) for tree in pair)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)


def test_where_every_head_needs_all_the_text_is_that_of_full_attention():
  own = stream(PromptWindows(coverage=1.0, probes=4, thresholds=NEVER))
  full = stream("", model=replace(MODEL, pattern=("attention",)))
  assert written(own) == written(full)
  assert own.window_log[-1] == {
    "what": "choose", "windows": ((0, 0), (0, 0)), "rungs_below": 2, "is_watched": True}


def test_windows_fall_rung_by_rung_while_little_is_far_and_each_set_is_one_program():
  blocks._compile.cache_clear()
  own = stream(PromptWindows(coverage=1.0, probes=4, thresholds=AT_ONCE))
  texts = written(own)
  assert all(len(ids) == LENGTH for ids in texts)
  lines = json.loads(json.dumps(own.window_log))
  assert [line["what"] for line in lines[:3]] == ["prompt", "prompt", "choose"]
  assert [line["tokens"] for line in lines[:2]] == [21, 10] and lines[0]["probes"] == 4
  changes = lines[3:]
  assert [line["what"] for line in changes] == ["lower"] * lines[2]["rungs_below"]
  assert [line["before"] - line["after"] for line in changes] == [1] * len(changes) and changes[-1]["after"] == 0
  assert changes[-1]["windows"] == [[4, 4], [4, 4]] and own.session.model.local.windows == (4,) * 4
  assert blocks._compile.cache_info().misses == 1 + len(changes)
  assert written(stream(PromptWindows(coverage=1.0, probes=4, thresholds=AT_ONCE))) == texts
  assert blocks._compile.cache_info().misses == 1 + len(changes), "nothing is compiled twice"


def test_a_head_gets_the_widest_window_of_all_rows_and_sets_below_it_end_at_the_smallest():
  rows = _widest([((4, 8), (4, 4)), ((8, 4), (0, 4))])
  assert rows == ((8, 8), (0, 4))
  assert _ladder(rows, (4, 8)) == [((4, 4), (4, 4)), ((4, 4), (8, 4)), rows]
  assert _ladder(((0,),), ()) == [((0,),)]


def test_the_share_that_counts_is_that_of_the_tokens_since_the_last_note():
  thresholds = Thresholds(up=0.5, down=0.0, up_steps=1, mean_steps=1, pause=1)
  own = TextWindows(MODEL, PromptWindows(thresholds=thresholds), ROOM)
  own._models, own._watch, session = [MODEL], Watch(rung=0), object.__new__(Session)
  own._seen, *notes = ([(np.full((2, 1), tokens), np.full((2, 1), share))] for tokens, share in (
    (20, 1.0), (24, 1.4), (26, 3.2)))
  for noted in notes:
    assert own.observe(noted, session) is session
  assert own.log == [
    {"step": 5, "what": "alert", "before": 0, "after": 0, "mean": pytest.approx(0.9), "windows": None}]


@pytest.mark.parametrize(("model", "sentence"), [
  (replace(MODEL, pattern=("attention",)), r"model\.pattern is attention; .* with --set=model\.pattern=local"),
  (replace(MODEL, local=replace(LOCAL, far="matching")), r"far=matching is fitted to queries, .*; use mean, moments"),
], ids=["attention", "matching"])
def test_models_without_such_windows_are_refused(model, sentence):
  with pytest.raises(ValueError, match=sentence):
    stream("per_prompt", model=model)


def test_other_ways_to_choose_are_refused():
  assert windows_of("") is None and windows_of("per_prompt") == PromptWindows()
  with pytest.raises(ValueError, match=r"windows='per_row' is no way to choose windows; use 'per_prompt'"):
    stream("per_row")
  with pytest.raises(ValueError, match="probes=0 must be at least 1"):
    PromptWindows(probes=0)
