"""Windows chosen once a prompt has been read: from a token cache that holds everything to the state under windows."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax

from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.config import ModelConfig
from lattice_jax.memories.local.config import check, flat
from lattice_jax.memories.local.far import find_fold
from lattice_jax.memories.local.layers import at_block
from lattice_jax.memories.local.narrow import narrow, narrow_state
from lattice_jax.memories.local.state import LocalCache, empty_cache
from lattice_jax.ops.local import ALL, Ring, group_heads


def check_choice(model: ModelConfig) -> None:
  """Raises ValueError where the summary is made of what is not at hand then."""
  if model.local.far == "matching":
    raise ValueError(
      "model.local.far=matching is fitted to queries, which are gone when windows are chosen after a prompt; use mean, "
      "moments or none.")
  if model.local.far == "features":
    raise ValueError(
      "model.local.far=features is made by maps that are parameters of the layers, which are not at hand when windows "
      "are chosen after a prompt; use mean, moments or none.")


def rungs_for(model: ModelConfig, max_len: int) -> tuple[int, tuple[int, ...]]:
  """The sinks, and the rungs that hide something of so many tokens and are wide enough for the picks."""
  local = model.local
  least = 2 * local.pick_lag if local.picks else 1
  return local.sinks, tuple(rung for rung in local.rungs if rung >= least and local.sinks + rung < max_len)


def with_windows(model: ModelConfig, windows_LH: tuple[tuple[int, ...], ...]) -> ModelConfig:
  """The model with those windows."""
  return replace(model, local=replace(model.local, windows=flat(windows_LH), profile=""))


@functools.partial(jax.jit, static_argnums=(0, 2))
def as_local(model: ModelConfig, state: dict[str, KVCache], max_len: int) -> dict[str, LocalCache]:
  """A decoder's state under `model`, all of whose blocks are local, from caches in which every token has its slot.

  As if the texts had been read under the windows of `model` with the keys and values that full attention gave them.
  max_len: tokens that the state has room for.

  Raises:
    ValueError: as `narrow`, of a summary that is fitted to queries.
  """
  attention = model.attention
  check(model.local)

  def convert(block: int, cache: KVCache) -> LocalCache:
    after = at_block(model, block).local
    before, layers = replace(after, windows=(ALL,)), len(cache.seen_B)
    empty = empty_cache(
      before, group_heads(((ALL,) * attention.kv_heads,) * layers), cache.seen_B.shape[1], cache.num_slots,
      key_dim=attention.key_dim, value_dim=attention.value_dim, dtype=cache.key_BHSK.dtype,
      fold=find_fold(before, attention.heads // attention.kv_heads), layers=layers)
    whole = empty.replace(
      rings=(Ring(cache.key_BHSK, cache.value_BHSV),), seen_B=cache.seen_B, document_B=cache.document_B)
    return narrow(
      before, after, whole, kv_heads=attention.kv_heads, group=attention.heads // attention.kv_heads, max_len=max_len)

  return {f"block_{block}": convert(block, state[f"block_{block}"]) for block in range(len(model.pattern))}


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def lower(before: ModelConfig, after: ModelConfig, state: dict[str, Any], max_len: int) -> dict[str, Any]:
  """`narrow_state` as one program."""
  return narrow_state(before, after.local, state, max_len)
