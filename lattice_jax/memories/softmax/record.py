"""What the rest of the code knows of softmax attention, over all tokens that a cache keeps or over a window."""

from __future__ import annotations

import flax.linen as nn

from lattice_jax.cache.compact import compact
from lattice_jax.cache.kv_cache import CacheView, KVCache
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import check
from lattice_jax.memories.memory import Carried, Memory
from lattice_jax.memories.multiply_adds import attention_projections
from lattice_jax.memories.softmax.cases import make_cases
from lattice_jax.memories.softmax.layer import SoftmaxAttention


def _make(model: ModelConfig, window: int, name: str | None) -> nn.Module:
  return SoftmaxAttention(
    model.attention, cache=model.cache, window=window, dtype=model.dtype, impl=model.impl, name=name)


def _multiply_adds(model: ModelConfig, seen: float) -> float:
  attention = model.attention
  reads = attention.heads * seen * (attention.key_dim + attention.value_dim)
  return attention_projections(model.dim, attention) + reads


def _check_window(model: ModelConfig) -> None:
  check(model.attention)
  if model.attention.window < 1:
    raise ValueError(
      f"the memory 'window' needs model.attention.window ≥ 1, not {model.attention.window}; "
      "set a window, or use the memory 'attention'.")


# A scan over layers would copy the cache that it takes in and gives out at every layer.
_CACHES = Carried(
  rides=lambda state: isinstance(state, KVCache) and state.num_slots > 0,
  enter=CacheView,
  leave=lambda view: view.stack,
  finish=lambda model, stacks, length: compact(make_policy(model.cache), stacks, call_len=length))

MEMORIES = {
  "attention": Memory(
    make=lambda model, name=None: _make(model, 0, name),
    multiply_adds=lambda model, length: _multiply_adds(model, (length + 1) / 2),
    cases=make_cases,
    check=lambda model: check(model.attention),
    visible=lambda model, query, key: make_policy(model.cache).sees(query, key),
    needs_token_cache=True,
    takes_policy=True,
    is_attention=True,
    exchange="gather",
    carried=_CACHES),
  "window": Memory(
    make=lambda model, name=None: _make(model, model.attention.window, name),
    multiply_adds=lambda model, length: _multiply_adds(model, min(model.attention.window, (length + 1) / 2)),
    cases=make_cases,
    check=_check_window,
    visible=lambda model, query, key: query - model.attention.window < key <= query,
    is_attention=True,
    exchange="halo",
    reach=lambda model: model.attention.window),
}
