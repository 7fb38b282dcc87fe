"""Time of a decode step with the full cache and with windows, beside what the bytes that it reads allow.

Nothing is read before: caches are filled with random keys and values, as after a text of that length.
"""

from __future__ import annotations

import bisect
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.bench.cache import filled as filled_cache
from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.inference.session import Session, SessionState
from lattice_jax.memories.local.state import LocalCache
from lattice_jax.models.decoder import init_state
from lattice_jax.sharding import tree_bytes

_GRAIN, _FARTHEST = 64, 2**17  # lengths between which the bound is looked for, in tokens
_WARM_UP = 3  # first steps of every arm, which are not timed


def measure_decoding(
  models: Mapping[str, ModelConfig], variables: Any, *, length: int, batch: int, steps: int,
) -> dict[str, Any]:
  """Times single steps of all models in turn, in one process, after `length` tokens; the first is the full cache.

  Returns:
    Of each model its bytes, milliseconds of each step and their median, what fewer bytes would save of the first one's
    time if time were bytes, and what it did save.
  """
  room = length + _WARM_UP + steps
  sessions = {name: _session(model, variables, batch, length, room) for name, model in models.items()}
  weights = tree_bytes(variables)
  token_B = np.ones(batch, np.int32)
  seconds: dict[str, list[float]] = {name: [] for name in sessions}
  for number in range(_WARM_UP + steps):
    for name, session in sessions.items():
      start = time.perf_counter()
      session.step(token_B)
      jax.block_until_ready(session.state)
      if number >= _WARM_UP:
        seconds[name].append(time.perf_counter() - start)
  read = {name: weights + cache_bytes(model, batch, length) for name, model in models.items()}
  first = next(iter(models))
  return {
    "length": length, "batch": batch, "steps": steps, "weight_bytes": weights, "arms": [
      _record(name, seconds[name], read[name] - weights) | {
        "predicted": 1 - read[name] / read[first], **_saved(seconds[first], seconds[name])} for name in models]}


def decode_bound(
  models: Mapping[str, ModelConfig], weights: int, *, lengths: Sequence[int], batches: Sequence[int], goal: float,
) -> dict[str, Any]:
  """What fewer bytes can save of a step at best, and from which length on that is `goal`; nothing is measured.

  The first model is the full cache. weights: their bytes, all of which a step reads. With w of these, c of the full
  cache and r of another, no step can be faster by more than (c − r) / (w + c).

  Returns:
    Of each batch and model the shares by length, and the shortest length, in steps of 64 tokens up to 131,072, from
    which on the share is at least `goal`; None if there is none.
  """
  full, *_ = models.values()

  @functools.cache
  def row_bytes(model: ModelConfig, length: int) -> int:
    return cache_bytes(model, 1, length)

  def saved(model: ModelConfig, batch: int, length: int) -> float:
    whole, kept = (batch * row_bytes(each, length) for each in (full, model))
    return (whole - kept) / (weights + whole)

  def reaches(model: ModelConfig, batch: int) -> int | None:
    place = bisect.bisect_left(
      range(1, _FARTHEST // _GRAIN + 1), goal, key=lambda n: saved(model, batch, n * _GRAIN))
    return None if place == _FARTHEST // _GRAIN else (place + 1) * _GRAIN

  return {"weight_bytes": weights, "goal": goal, "lengths": list(lengths), "batches": [{
    "batch": batch, "arms": [
      {"name": name, "saved": [saved(model, batch, length) for length in lengths], "from": reaches(model, batch)}
      for name, model in models.items()]} for batch in batches]}


def cache_bytes(model: ModelConfig, batch: int, length: int) -> int:
  """Of the floating-point numbers of a cache with room for so many tokens, all of which a step reads."""
  shapes = jax.eval_shape(lambda: init_state(model, batch, length))
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes) if jnp.issubdtype(leaf.dtype, jnp.floating))


def filled(model: ModelConfig, batch: int, length: int, room: int) -> Any:
  """A decoder's state with room for `room` tokens as after `length`, of random keys and values, far summaries of ones.

  Raises:
    ValueError: a layer's memory is neither a token cache nor local attention.
  """
  return {name: _filled(model, cache, length) for name, cache in init_state(model, batch, room).items()}


def _filled(model: ModelConfig, cache: Any, length: int) -> Any:
  if isinstance(cache, KVCache):
    return filled_cache(make_policy(model.cache), cache, length)
  if not isinstance(cache, LocalCache):
    raise ValueError(
      f"a memory of {type(cache).__name__} cannot be filled with random tokens; compare 'attention' and 'local'.")

  def random(leaf: jax.Array, seed: int) -> jax.Array:
    is_used_S1 = (jnp.arange(leaf.shape[-2]) < length)[:, None]
    return jnp.where(is_used_S1, jax.random.normal(jax.random.key(seed), leaf.shape, leaf.dtype), 0)

  rings = tuple(
    ring.replace(key_BHSK=random(ring.key_BHSK, 0), value_BHSV=random(ring.value_BHSV, 1)) for ring in cache.rings)
  summary = jax.tree.map(lambda leaf: jnp.ones_like(leaf), cache.summary)
  return cache.replace(
    rings=rings, summary=summary, seen_B=jnp.full_like(cache.seen_B, length),
    document_B=jnp.zeros_like(cache.document_B))


def _session(model: ModelConfig, variables: Any, batch: int, length: int, room: int) -> Session:
  state = SessionState(
    logits_BA=jnp.zeros((batch, model.vocab), jnp.float32), position_B=jnp.full((batch,), length, jnp.int32),
    memory=filled(model, batch, length, room))
  return Session(model, variables, batch=batch, max_len=room, state=state)


def _record(name: str, seconds: Sequence[float], cache: int) -> dict[str, Any]:
  return {
    "name": name, "cache_bytes": cache, "p50_ms": 1e3 * float(np.median(seconds)),
    "ms": [round(1e3 * second, 3) for second in seconds]}


def _saved(full: Sequence[float], own: Sequence[float]) -> dict[str, float]:
  """Shares of the full cache's time that are saved: of the medians, and the median of neighbouring steps."""
  return {
    "saved_p50": 1 - float(np.median(own) / np.median(full)),
    "saved_p95": 1 - float(np.quantile(own, 0.95) / np.quantile(full, 0.95)),
    "saved_paired": 1 - float(np.median(np.array(own) / np.array(full)))}
