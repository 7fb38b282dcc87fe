"""From one rung to a lower one: the state of a text under smaller windows than those under which it was read.

A prompt may be read with full attention and answered with windows, or a head may be lowered while a text goes on. Each
set of windows is a program of its own, compiled once. No window can be raised: what a ring has dropped is gone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig
from lattice_jax.memories.local.config import LocalConfig, check, window_rows
from lattice_jax.memories.local.far import find_fold
from lattice_jax.memories.local.record import MEMORIES
from lattice_jax.memories.local.state import LocalCache
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.local import ALL, HeadGroup, Ring, group_heads, held, num_slots, slot_of


def narrow_state(before: ModelConfig, after: LocalConfig, state: dict[str, Any], max_len: int) -> dict[str, Any]:
  """A decoder's state, read under `before`, from which the same model with the windows of `after` goes on.

  max_len: tokens that the state has room for. Other memories stay as they are. Raises ValueError as `narrow`.
  """
  check(after)
  here, heads = {}, before.attention.kv_heads
  for block, memory in enumerate(before.pattern):
    if memory == "local":
      old, new = (
        MEMORIES["local"].at_block(replace(before, local=config), block).local for config in (before.local, after))
      name = f"block_{block}"
      here[name] = narrow(
        old, new, state[name], kv_heads=heads, group=before.attention.heads // heads, max_len=max_len)
  return {**state, **here}


def narrow(
  before: LocalConfig, after: LocalConfig, stack: LocalCache, *, kv_heads: int, group: int, max_len: int,
) -> LocalCache:
  """A stack of caches with the windows of `after`; what they have no room for goes to the summary, if there is one.

  group: query heads that share a key.

  Raises:
    ValueError: a window of `after` is wider than before, or its sinks or its summary are others, or the summary is one
      that is fitted to queries, of which the cache has none.
  """
  layers, seen_B = len(stack.seen_B), stack.seen_B[0]
  old_LH, new_LH = (window_rows(config, layers, kv_heads) for config in (before, after))
  _check(before, after, old_LH, new_LH)
  found = _by_head(group_heads(old_LH), stack)

  def ring(group: HeadGroup, kind: int, window: int) -> Ring:
    index_BS = held(seen_B, num_slots(after.sinks, window, max_len), sinks=after.sinks, window=window)

    def kept(layer: int, head: int) -> Ring:
      slot_BS = slot_of(index_BS, sinks=before.sinks, window=old_LH[layer][head])
      return jax.tree.map(
        lambda x_BS: keep_only(index_BS != EMPTY, jnp.take_along_axis(x_BS, slot_BS[..., None], 1, mode="clip")),
        found[layer, head])

    own = [layer for layer in range(layers) if group.kind_L[layer] == kind]
    return _stack([_stack([kept(layer, head) for head in group.heads], 1) for layer in own], 0)

  rings = tuple(
    ring(group, kind, window) for group in group_heads(new_LH) for kind, window in enumerate(group.windows))
  summary = stack.summary
  if summary is not None:
    fold = find_fold(before, group)
    summary = _stack([
      fold.add(jax.tree.map(lambda leaf, n=n: leaf[n], summary), _leaving(
        [found[n, head] for head in range(kv_heads)], old_LH[n], new_LH[n], seen_B, before.sinks))
      for n in range(layers)], 0)
  return stack.replace(rings=rings, summary=summary)


def _check(before, after, old_LH, new_LH) -> None:
  for name in ("sinks", "far", "summary"):
    if getattr(before, name) != getattr(after, name):
      raise ValueError(
        f"a text was read with model.local.{name}={getattr(before, name)} and cannot go on with "
        f"{getattr(after, name)}; keep it.")
  for layer, (old_H, new_H) in enumerate(zip(old_LH, new_LH, strict=True)):
    for old, new in zip(old_H, new_H, strict=True):
      if (new or float("inf")) > (old or float("inf")):
        raise ValueError(
          f"a head of layer {layer} has kept a window of {old} tokens and cannot go on with {new or 'all'}, for the "
          "others are gone; use a window that is no wider, or read the text again.")


def _by_head(groups: tuple[HeadGroup, ...], stack: LocalCache) -> dict[tuple[int, int], Ring]:
  """What each head of each layer keeps, arrays [B, S, …]."""
  rings, found = list(stack.rings), {}
  for group in groups:
    own, rings = rings[:len(group.windows)], rings[len(group.windows):]
    for layer, (kind, place) in enumerate(zip(group.kind_L, group.place_L, strict=True)):
      for n, head in enumerate(group.heads):
        found[layer, head] = jax.tree.map(lambda x, at=(place, n): x[at[0], :, at[1]], own[kind])
  return found


def _leaving(found: list[Ring], old_H, new_H, seen_B: jax.Array, sinks: int) -> Evicted:
  """What the heads of a layer keep in their old windows and not in their new ones."""
  most, parts = max(ring.key_BHSK.shape[1] for ring in found), []
  for ring, old, new in zip(found, old_H, new_H, strict=True):
    slots = ring.key_BHSK.shape[1]
    index_BS = held(seen_B, slots, sinks=sinks, window=old)
    leaves_BS = (index_BS >= sinks) & (index_BS < seen_B[:, None] - new) & (new != ALL)
    part = ring.key_BHSK, ring.value_BHSV, index_BS, leaves_BS
    parts.append(tuple(jnp.pad(x, ((0, 0), (0, most - slots), *((0, 0),) * (x.ndim - 2))) for x in part))
  return Evicted(*(jnp.stack(columns, 1) for columns in zip(*parts, strict=True)))


def _stack(trees: list, axis: int):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)
