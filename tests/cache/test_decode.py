"""Decoding through a stack of caches: in place, one branch, compiled once; states that are compressed or saved."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.flax import load_file, save_file

from lattice_jax.cache.compact import num_due
from lattice_jax.cache.convert import compress, uncompressed
from lattice_jax.cache.kv_cache import cache_bytes
from lattice_jax.cache.policies.registry import POLICIES
from lattice_jax.cache.policies.snapkv import SnapKVConfig
from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.models.saved_state import load_state, save_state
from lattice_jax.sharding import tree_bytes, unbox
from lattice_jax.types import whole_segment
from tests.contract.harness import quick_jit

BATCH, LENGTH, MAX_LEN, LAYERS = 2, 45, 64, 8
LAGKV = CacheConfig(policy="lagkv", sinks=3, lag=8, keep=3, snapkv=SnapKVConfig(observe=4))
MODEL = ModelConfig(
  vocab=31, dim=12, layers=LAYERS, pattern=("attention",), block="mlp", mlp_dim=8, cache=LAGKV,
  attention=AttentionConfig(heads=4, kv_heads=2, key_dim=8, value_dim=6))
WINDOW = CacheConfig(policy="window", sinks=3, window=WindowConfig(window=9))


def model_of(policy, **changes):
  cache = WINDOW if policy == "window" else replace(LAGKV, policy=policy)
  return replace(MODEL, cache=replace(cache, **changes))


@functools.cache
def variables():
  return quick_jit(lambda: jax.tree.map(lambda leaf: 2 * leaf, unbox(init_variables(MODEL, jax.random.key(0)))))()


def text(seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, MODEL.vocab, (BATCH, LENGTH)), jnp.int32)


def call(model, variables, tokens_BT, state, segment):
  output = Decoder(model).apply(variables, tokens_BT, state, segment)
  return output.features_BTD, output.state


@functools.cache
def compiled(model):
  return quick_jit(functools.partial(call, model))


@functools.cache
def prompt_state(model):
  """The state after the prompt in one call."""
  return compiled(model)(variables(), text(), init_state(model, BATCH, MAX_LEN), whole_segment(BATCH, LENGTH))[1]


@pytest.mark.parametrize(
  ("policy", "changes"), [("full", {}), ("lagkv", {}), ("lagkv", {"budget": "memory"}), ("snapkv", {})], ids=str)
def test_a_decode_step_writes_in_place_and_has_one_branch(policy, changes):
  model, room = model_of(policy, **changes), 1024
  state = jax.eval_shape(lambda: init_state(model, BATCH, room))
  segment = jax.eval_shape(lambda: whole_segment(BATCH, 1))
  tokens = jax.ShapeDtypeStruct((BATCH, 1), jnp.int32)
  step = jax.jit(functools.partial(call, model), donate_argnums=2)
  program = step.lower(variables(), tokens, state, segment).compile()
  size, memory = cache_bytes(model, BATCH, room), program.memory_analysis()
  assert memory.alias_size_in_bytes == size == tree_bytes(state)
  assert memory.temp_size_in_bytes < size / 3  # what compaction makes of one layer of eight
  assert program.as_text().count(" conditional(") == 1


def test_many_steps_compile_once_and_lengths_follow_the_formula():
  step, state, sizes = compiled(MODEL), prompt_state(MODEL), set()
  for position in range(LENGTH, MAX_LEN):
    _, state = step(variables(), text()[:, :1], state, whole_segment(BATCH, 1, start=position))
    assert (state["block_0"].length_B == make_policy(LAGKV).length_after(position + 1)).all()
    sizes.add(step._cache_size())
  assert len(sizes) == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("call_len", [0, 1])
def test_bytes_are_the_formula(policy, call_len):
  model = model_of(policy, call_len=call_len)
  assert cache_bytes(model, 3, 500) == tree_bytes(jax.eval_shape(lambda: init_state(model, 3, 500)))


@pytest.mark.parametrize("policy", ["lagkv", "sep", "window", "h2o", "snapkv"])
def test_compressing_a_full_cache_is_reading_under_the_policy(policy):
  model = model_of(policy)
  plain = uncompressed(MODEL, [model_of(name).cache for name in POLICIES])
  got, want = compress(model, prompt_state(plain), MAX_LEN), prompt_state(model)
  if policy == "window":
    # its queries see less already while they read, so that deeper layers have other keys
    got, want = (jax.tree.map(lambda leaf: leaf[0], state) for state in (got, want))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_small_cache_decodes_as_a_roomy_one():
  roomy, small = compress(MODEL, prompt_state(uncompressed(MODEL)), MAX_LEN), model_of("lagkv", call_len=1)
  tight = compress(small, prompt_state(uncompressed(MODEL)), MAX_LEN)
  assert tight["block_0"].num_slots < roomy["block_0"].num_slots
  for position in range(LENGTH, LENGTH + 6):
    arguments = text()[:, :1], whole_segment(BATCH, 1, start=position)
    want, roomy = compiled(MODEL)(variables(), arguments[0], roomy, arguments[1])
    got, tight = compiled(small)(variables(), arguments[0], tight, arguments[1])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_call_longer_than_the_cache_was_made_for_is_refused():
  model = model_of("lagkv", call_len=4)
  with pytest.raises(ValueError, match=r"call of 45 tokens is longer than model\.cache\.call_len=4"):
    compiled(model)(variables(), text(), init_state(model, BATCH, MAX_LEN), whole_segment(BATCH, LENGTH))


def test_compressing_needs_room_and_records():
  plain = uncompressed(MODEL)
  with pytest.raises(ValueError, match="more than max_len=44"):
    compress(MODEL, prompt_state(plain), 44)
  for policy, message in (
    ("h2o", "that each token received, which was not"), ("snapkv", "the last 4 queries, of which 0"),
    ("sep", "the marks of each token, which were not recorded")):
    with pytest.raises(ValueError, match=message):
      compress(model_of(policy), prompt_state(plain), MAX_LEN)


def test_a_saved_state_has_its_marks(tmp_path):
  model = model_of("sep")
  segment = whole_segment(BATCH, LENGTH).replace(marks_BT=(text() % 4).astype(jnp.int8))
  state = compiled(model)(variables(), text(), init_state(model, BATCH, MAX_LEN), segment)[1]
  assert state["block_0"].mark_BHS.any()
  save_state(tmp_path / "read.safetensors", model, variables(), state, MAX_LEN)
  jax.tree.map(np.testing.assert_array_equal, load_state(tmp_path / "read.safetensors", model, variables()), state)


def test_a_saved_state_answers_several_questions(tmp_path):
  state = prompt_state(MODEL)
  save_state(tmp_path / "read.safetensors", MODEL, variables(), state, MAX_LEN)
  loaded = load_state(tmp_path / "read.safetensors", MODEL, variables())
  jax.tree.map(np.testing.assert_array_equal, loaded, state)
  assert jax.tree.structure(loaded) == jax.tree.structure(state)
  for question in (3, 7):
    arguments = jnp.full((BATCH, 1), question), whole_segment(BATCH, 1, start=LENGTH)
    want, _ = compiled(MODEL)(variables(), arguments[0], state, arguments[1])
    got, _ = compiled(MODEL)(variables(), arguments[0], loaded, arguments[1])
    np.testing.assert_array_equal(got, want)


def test_a_state_that_was_saved_before_policies_had_sections_loads(tmp_path, monkeypatch):
  asdict = dataclasses.asdict

  def as_before(model):
    config = asdict(model)
    sections = {name: config["cache"].pop(name) for name in ("full", "window", "lagkv", "local", "random", "snapkv")}
    for section in sections.values():
      config["cache"] |= section
    return config

  model, path = replace(MODEL, cache=WINDOW), tmp_path / "read.safetensors"
  with monkeypatch.context() as before:
    before.setattr(dataclasses, "asdict", as_before)
    save_state(path, model, variables(), init_state(model, 1, MAX_LEN), MAX_LEN)
  assert b'\\"window\\": 9,' in path.read_bytes()
  load_state(path, model, variables())
  arrays = load_file(path)
  assert arrays.pop("block_0.mark_BHS").size == 0  # of which older files know nothing
  with safe_open(path, framework="flax") as file:
    save_file(arrays, path, metadata=file.metadata())
  assert load_state(path, model, variables())["block_0"].mark_BHS.shape == (LAYERS, 1, 2, 0)
  with pytest.raises(ValueError, match=r"saved with model\.cache\.window\.window=9, and the model has 7"):
    load_state(path, replace(MODEL, cache=replace(WINDOW, window=WindowConfig(window=7))), variables())


@pytest.mark.parametrize(("changes", "message"), [
  ({"cache": replace(LAGKV, keep=4)}, "model.cache.keep=3, and the model has 4"),
  ({"norm_eps": 0.5}, "model.norm_eps=1e-06, and the model has 0.5")], ids=["policy", "model"])
def test_the_state_of_another_model_or_policy_is_refused(tmp_path, changes, message):
  path = tmp_path / "read.safetensors"
  save_state(path, MODEL, variables(), init_state(MODEL, 1, MAX_LEN), MAX_LEN)
  with pytest.raises(ValueError, match=message):
    load_state(path, replace(MODEL, **changes), variables())
  with pytest.raises(ValueError, match="is what other weights made of the text; load the model that read it"):
    load_state(path, MODEL, jax.tree.map(lambda leaf: -leaf, variables()))
  whole = path.read_bytes()
  for content, message in ((whole[:50], "cannot be read as"), (whole.replace(b"state 2", b"state 1"), "is no saved")):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
      load_state(path, MODEL, variables())
  with pytest.raises(ValueError, match="cannot be read as a saved state"):
    load_state(tmp_path / "nothing.safetensors", MODEL, variables())


def test_layers_that_are_skipped_keep_every_token_and_the_others_do_not_notice():
  policy, state = make_policy(replace(LAGKV, skip_layers=2)), prompt_state(uncompressed(MODEL))
  skipping = compress(model_of("lagkv", skip_layers=2, call_len=1), state, MAX_LEN)["block_0"]
  dropping = compress(MODEL, state, MAX_LEN)["block_0"]
  assert skipping.length_B.tolist() == [[LENGTH] * BATCH] * 2 + [[policy.length_after(LENGTH)] * BATCH] * (LAYERS - 2)
  for name in ("key_BHSK", "value_BHSV", "position_BHS"):
    got, read = getattr(skipping, name), getattr(state["block_0"], name)
    np.testing.assert_array_equal(got[:2], read[:2])
    np.testing.assert_array_equal(got[2:], getattr(dropping, name)[2:])
  layer_L1 = jnp.arange(LAYERS)[:, None]
  assert (num_due(policy, skipping, layer_L1) == 0).all()
  assert (num_due(policy, state["block_0"], layer_L1) > 0).any(1).tolist() == [False] * 2 + [True] * (LAYERS - 2)
