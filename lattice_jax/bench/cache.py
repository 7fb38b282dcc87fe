"""Speed of decoding after a long text by cache policy: whole steps of a model, or only the attention of its layers.

The text is not read; caches are filled with random keys and values to the lengths that reading would leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.cache.compact import compact
from lattice_jax.cache.kv_cache import CacheView, KVCache, cache_bytes
from lattice_jax.cache.policy import Policy, make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.sharding import tree_bytes, unbox
from lattice_jax.types import make_segment

# The sizes of SmolLM2-135M.
MODEL = ModelConfig(
  vocab=49_152, dim=576, layers=30, pattern=("attention",), block="mlp", mlp_dim=1536, tied_embeddings=True,
  attention=AttentionConfig(heads=9, kv_heads=3, key_dim=64, value_dim=64, rope_theta=100_000.0))
PARTS = ("step", "attention")


@dataclass
class Decoding:
  """One policy after a text. seconds: of single tokens, by round."""

  name: str
  length: int  # tokens that attention reads at the start
  bytes_measured: int
  bytes_formula: int
  temp_bytes: int
  seconds: list[list[float]] = field(default_factory=list)


def measure(
  model: ModelConfig, cache: CacheConfig, text_len: int, *, part: str, num_tokens: int, rounds: int,
) -> list[Decoding]:
  """Times in turn the full cache, `cache`, and a full cache of the length that `cache` leaves.

  Only the cost of the policy itself tells the last two apart. `num_tokens` should be a multiple of `cache.lag`, so that
  compressions are counted as often as they happen.
  """
  kept = make_policy(cache).length_after(text_len)
  cases = {
    "full": (CacheConfig(), text_len), cache.policy: (replace(cache, call_len=1), text_len),
    f"full of {kept}": (CacheConfig(), kept)}
  runs = [
    _prepare(name, replace(model, cache=config), seen, part, num_tokens) for name, (config, seen) in cases.items()]
  for number in range(rounds + 1):
    for result, step, state in runs:
      seconds = _decode(step, state, num_tokens)
      if number:  # the first round touches memory for the first time
        result.seconds.append(seconds)
  return [result for result, _, _ in runs]


def _prepare(
  name: str, model: ModelConfig, seen: int, part: str, num_tokens: int,
) -> tuple[Decoding, Callable[..., Any], Any]:
  policy, max_len = make_policy(model.cache), seen + num_tokens
  state = {block: filled(policy, cache, seen) for block, cache in init_state(model, 1, max_len).items()}
  function, fixed = _model_step(model) if part == "step" else _attention_step(model, policy)
  example = fixed, state, jnp.zeros((1, 1), jnp.int32)
  compiled = jax.jit(function, donate_argnums=1).lower(*example).compile()
  result = Decoding(
    name=name, length=int(next(iter(state.values())).length_B.max()), bytes_measured=tree_bytes(state),
    bytes_formula=cache_bytes(model, 1, max_len), temp_bytes=compiled.memory_analysis().temp_size_in_bytes)
  return result, lambda state, position: compiled(fixed, state, jnp.full((1, 1), position, jnp.int32)), (state, seen)


def filled(policy: Policy, cache: KVCache, seen: int) -> KVCache:
  """A stack of caches as after `seen` tokens, with random keys and values in the slots in use."""
  length = policy.length_after(seen)
  slot_S = jnp.arange(cache.num_slots)
  is_used_S = slot_S < length
  keys = jax.random.split(jax.random.key(0), 2)
  base = policy.sinks + policy.keep * max(0, (seen - policy.sinks) // policy.lag - 1) if policy.lag else policy.sinks

  def numbers(value: int) -> jax.Array:
    return jnp.full_like(cache.length_B, value)

  def random(key: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.where(is_used_S[:, None], jax.random.normal(key, like.shape, like.dtype), jnp.zeros((), like.dtype))

  return cache.replace(
    key_BHSK=random(keys[0], cache.key_BHSK), value_BHSV=random(keys[1], cache.value_BHSV),
    position_BHS=jnp.where(is_used_S, slot_S, cache.position_BHS), base_B=numbers(base), length_B=numbers(length),
    filled_B=numbers(length), seen_B=numbers(seen), document_B=numbers(0))


def _model_step(model: ModelConfig) -> tuple[Callable[..., Any], Any]:
  variables = jax.jit(lambda: unbox(init_variables(model, jax.random.key(0))))()

  def step(variables, state, position_BT):
    output = Decoder(model).apply(variables, jnp.ones_like(position_BT), state, make_segment(position_BT))
    return Decoder(model).apply(variables, output.features_BTD, method=Decoder.logits), output.state

  return step, variables


def _attention_step(model: ModelConfig, policy: Policy) -> tuple[Callable[..., Any], Any]:
  """Reads and writes the caches of all layers, with the same query, key and value in each."""
  attention, keys = model.attention, jax.random.split(jax.random.key(1), 3)
  token = tuple(jax.random.normal(key, (1, 1, heads, width)) for key, heads, width in zip(
    keys, (attention.heads, attention.kv_heads, attention.kv_heads),
    (attention.key_dim, attention.key_dim, attention.value_dim), strict=True))

  def step(token, state, position_BT):
    def one_layer(stack, layer):
      out, view = read_and_append(policy, *token, CacheView(stack, layer), make_segment(position_BT), impl=model.impl)
      return view.stack, out

    stack, out = jax.lax.scan(one_layer, state["block_0"], jnp.arange(model.layers))
    return out, compact(policy, {"block_0": stack}, call_len=1)

  return step, token


def _decode(step: Callable[..., Any], start: tuple[Any, int], num_tokens: int) -> list[float]:
  """Seconds of each token. Steps take over (donate) their state, so the one at the start is copied."""
  state, seen = jax.block_until_ready(jax.tree.map(jnp.copy, start[0])), start[1]
  seconds = []
  for position in range(seen, seen + num_tokens):
    before = time.perf_counter()
    out, state = step(state, position)
    jax.block_until_ready((out, state))
    seconds.append(time.perf_counter() - before)
  return seconds
