"""Windows of the texts of one batch: chosen once their prompts are read, lowered while little of the attention is far.

Prompts are read with full attention, whose cache notes the last queries. These choose a rung for every head
(`window_choice.choose_for_prompt`), and the texts go on in the memory `local` under these windows. Rows share a
program, so a head gets the widest window that a row needs. The windows chosen and those below them, all heads a rung
lower at a time, are the only ones there are: each is a program of its own, compiled when first needed and kept.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.kv_cache import KVCache
from lattice_jax.cache.policies.full import FullConfig
from lattice_jax.config import ModelConfig
from lattice_jax.inference.session import Session
from lattice_jax.inference.window_choice import LOWER, Thresholds, Watch, choose_for_prompt, observe
from lattice_jax.memories.memory import Windowed
from lattice_jax.memories.registry import FOLDERS, find_memory
from lattice_jax.ops.local import ALL

PER_PROMPT = "per_prompt"
Rows = tuple[tuple[int, ...], ...]  # the window of every key/value head, layer by layer


@dataclass(frozen=True)
class PromptWindows:
  """How windows are chosen: probes and coverage as of `choose_for_prompt`, thresholds as of `observe`."""

  probes: int = 64
  coverage: float = 0.95
  thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)

  def __post_init__(self) -> None:
    if self.probes < 1:
      raise ValueError(f"probes={self.probes} must be at least 1 query.")


def windows_of(asked: PromptWindows | str) -> PromptWindows | None:
  """What a text's option stands for: "" for none, "per_prompt" for the defaults. Raises ValueError for other words."""
  if isinstance(asked, PromptWindows) or not asked:
    return asked or None
  if asked != PER_PROMPT:
    raise ValueError(f"windows={asked!r} is no way to choose windows; use {PER_PROMPT!r}, or leave it out.")
  return PromptWindows()


def reading_model(model: ModelConfig, options: PromptWindows) -> ModelConfig:
  """The model as it reads prompts: full attention, with the last queries on record.

  Raises:
    ValueError: the model is not of one memory whose heads have windows, or these cannot be chosen after a prompt.
  """
  _windowed(model).check(model)
  cache = CacheConfig(policy="full", full=FullConfig(records=("queries",), observe=options.probes))
  return replace(model, pattern=("attention",) * len(model.pattern), cache=cache)


class TextWindows:
  """The windows under which a batch of texts goes on. log: what was decided, for an audit, as JSON can hold it."""

  def __init__(self, model: ModelConfig, options: PromptWindows, max_len: int):
    """model: under which texts go on, but for its windows. max_len: tokens that their state has room for."""
    self.log: list[dict[str, Any]] = []
    self._base, self._options, self._max_len, self._memory = model, options, max_len, _windowed(model)
    # what hides nothing of the longest text saves nothing
    self._sinks, self._rungs = self._memory.rungs(model, max_len)

  @property
  def model(self) -> ModelConfig:
    """With the windows of now."""
    return self._models[self._watch.rung]

  def choose(self, session: Session) -> Session:
    """The session that goes on, under windows chosen for what `session` has read under `reading_model`."""
    caches = [session.state.memory[f"block_{block}"] for block in range(len(self._base.pattern))]
    rows_B = self._of_prompts(caches)
    rows = _widest(rows_B)
    ladder = _ladder(rows, self._rungs)
    self._models = [self._memory.with_windows(self._base, windows) for windows in ladder]
    self._ladder, self._watch = ladder, Watch(rung=len(ladder) - 1)
    memory = self._memory.from_full(self.model, session.state.memory, self._max_len)
    self._seen = self.note(memory)
    self.log.append({
      "what": "choose", "windows": rows, "rungs_below": len(ladder) - 1, "is_watched": self._seen[0][1] is not None})
    return session.go_on(self.model, memory, self._max_len)

  def note(self, memory: Any) -> Any:
    """What `observe` needs of a state that is given away: (tokens so far, far shares so far), [L, B] of each block."""
    return [jax.tree.map(jnp.copy, self._memory.far_share(block)) for block in memory.values()]

  def observe(self, noted: Any, session: Session) -> Session:
    """Takes in what was far in the tokens up to a note; the session, which may have read on, under its windows now."""
    before, self._seen = self._seen, noted
    if before[0][1] is None:
      return session
    tokens, share = (sum(
      float(np.sum(np.asarray(new[n], np.float64) - np.asarray(old[n], np.float64)))
      for new, old in zip(noted, before, strict=True)) for n in (0, 1))
    was = self._watch.rung
    per_row = round(tokens / max(1, sum(new[0].size for new in noted)))
    for _ in range(per_row):
      self._watch, change = observe(
        self._watch, min(max(share / tokens, 0.0), 1.0), num_rungs=len(self._models), can_raise=False,
        thresholds=self._options.thresholds)
      if change is not None:
        self.log.append(dataclasses.asdict(change) | {
          "windows": self._ladder[change.after] if change.what == LOWER else None})
    if self._watch.rung == was:
      return session
    memory = self._memory.lower(self._models[was], self.model, session.state.memory, self._max_len)
    return session.go_on(self.model, memory, self._max_len)

  def _of_prompts(self, caches: list[KVCache]) -> list[Rows]:
    """The windows that each row asks for; every row is logged."""
    layers, found = self._base.layers, []
    chosen = [jax.device_get(_choose(self._rungs, self._sinks, self._options.coverage, cache))
              for cache in caches]
    for row, num_tokens in enumerate(np.asarray(caches[0].seen_B)[0].tolist()):
      windows_LH, shares_LRQ = (
        [chosen[layer % len(caches)][n][layer // len(caches)][row].tolist() for layer in range(layers)] for n in (0, 1))
      found.append(tuple(map(tuple, windows_LH)))
      self.log.append({
        "what": "prompt", "row": row, "tokens": num_tokens, "probes": min(self._options.probes, num_tokens),
        "coverage": self._options.coverage, "rungs": self._rungs, "windows": windows_LH,
        "shares": [[[round(share, 4) for share in row] for row in layer] for layer in shares_LRQ]})
    return found


def _windowed(model: ModelConfig) -> Windowed:
  (name, *others), known = set(model.pattern), [name for name in FOLDERS if find_memory(name).windowed]
  if others or name not in known:
    raise ValueError(
      f"windows are chosen per prompt in models of one memory whose heads have windows, {' or '.join(known)}, and "
      f"model.pattern is {','.join(model.pattern)}; a model of softmax attention can have them with "
      f"--set=model.pattern={known[0]}, others cannot.")
  return find_memory(name).windowed


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _choose(rungs: tuple[int, ...], sinks: int, coverage: float, cache: KVCache) -> tuple[jax.Array, jax.Array]:
  """Windows [L, B, H], and the share of attention that each rung keeps of each query head, [L, B, R, Q]."""
  layers, batch, heads = cache.key_BHSK.shape[:3]
  if not rungs:
    return jnp.full((layers, batch, heads), ALL), jnp.zeros((layers, batch, 0, cache.query_BWQK.shape[3]))

  def of_layer(layer: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    q_BMQK, key_BHSK, seen_B = layer
    window_BH, share_RBQ = choose_for_prompt(
      q_BMQK, jnp.moveaxis(key_BHSK, 1, 2), rungs=rungs, sinks=sinks, coverage=coverage, num_tokens=seen_B)
    return window_BH, jnp.moveaxis(share_RBQ, 0, 1)

  return jax.lax.map(of_layer, (cache.query_BWQK, cache.key_BHSK, cache.seen_B))


def _widest(rows_B: list[Rows]) -> Rows:
  """Of each head the widest window that a text asks for."""
  return tuple(
    tuple(ALL if ALL in windows else max(windows) for windows in zip(*layers, strict=True))
    for layers in zip(*rows_B, strict=True))


def _ladder(rows: Rows, rungs: tuple[int, ...]) -> list[Rows]:
  """Sets of windows, the lowest first, in each of which all heads have the rung below that of the next set."""
  places, sets = (*rungs, ALL), [rows]
  while True:
    below = tuple(tuple(places[max(0, places.index(window) - 1)] for window in row) for row in sets[0])
    if below == sets[0]:
      return sets
    sets.insert(0, below)
