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
from lattice_jax.memories.local.layers import at_block
from lattice_jax.memories.local.state import LocalCache
from lattice_jax.ops.attention.fold import Evicted
from lattice_jax.ops.documents import EMPTY, keep_only
from lattice_jax.ops.local import (
  HeadGroup,
  Leaving,
  Picks,
  Ring,
  Scores,
  choose,
  group_heads,
  held,
  num_slots,
  score_leaving,
  slot_of,
)

_EVERYTHING = 2**30  # a window that no document fills


def narrow_state(before: ModelConfig, after: LocalConfig, state: dict[str, Any], max_len: int) -> dict[str, Any]:
  """A decoder's state, read under `before`, from which the same model with the windows of `after` goes on.

  max_len: tokens that the state has room for. Other memories stay as they are. Raises ValueError as `narrow`.
  """
  check(after)
  here, heads = {}, before.attention.kv_heads
  for block, memory in enumerate(before.pattern):
    if memory == "local":
      old, new = (at_block(replace(before, local=config), block).local for config in (before.local, after))
      name = f"block_{block}"
      here[name] = narrow(
        old, new, state[name], kv_heads=heads, group=before.attention.heads // heads, max_len=max_len)
  return {**state, **here}


def narrow(
  before: LocalConfig, after: LocalConfig, stack: LocalCache, *, kv_heads: int, group: int, max_len: int,
) -> LocalCache:
  """A stack of caches with the windows of `after`; what they have no room for is picked or goes to the summary, if any.

  group: query heads that share a key.

  Raises:
    ValueError: a window of `after` is wider than before, or its sinks, picks or summary are others, or the summary is
      one that is fitted to queries, of which the cache has none.
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
  summary, picks = stack.summary, stack.picks
  if summary is None and picks is None:
    return stack.replace(rings=rings)
  left, scores = _leaving(found, old_LH, new_LH, seen_B, before.sinks, picks)
  if picks is not None:
    chosen = choose(_as_rows(picks), left, scores, jnp.zeros(left.leaves_BTH.shape[:2], bool))
    picks, left = _as_layers(chosen.picks, layers), chosen.gone
  if summary is not None:
    gone = Evicted(*(
      jnp.swapaxes(x, 1, 2) for x in (left.key_BTHK, left.value_BTHV, left.position_BTH, left.leaves_BTH)))
    summary = _as_layers(find_fold(before, group).add(_as_rows(summary), gone), layers)
  return stack.replace(rings=rings, summary=summary, picks=picks)


def _check(before, after, old_LH, new_LH) -> None:
  for name in ("sinks", "far", "summary", "picks", "pick_lag"):
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


def _leaving(
  found: dict[tuple[int, int], Ring], old_LH, new_LH, seen_B: jax.Array, sinks: int, picks: Picks | None,
) -> tuple[Leaving, Scores | None]:
  """What the old windows keep and the new ones do not, the oldest first, rows of all layers together; and its scores.

  A head of a row of a layer is a row R of its own here.
  """
  layers, heads, batch = len(old_LH), len(old_LH[0]), len(seen_B)
  most = max(ring.num_slots for ring in found.values())
  ring = _stack([
    jax.tree.map(lambda x_BS: jnp.pad(x_BS, ((0, 0), (0, most - x_BS.shape[1]), (0, 0))), found[layer, head])
    for layer in range(layers) for head in range(heads)], 0)
  key_RSK, value_RSV = (x.reshape(-1, *x.shape[2:]) for x in (ring.key_BHSK, ring.value_BHSV))
  old_R1, new_R1 = (
    jnp.repeat(jnp.asarray([window or _EVERYTHING for row in rows for window in row], jnp.int32), batch)[:, None]
    for rows in (old_LH, new_LH))
  seen_R1 = jnp.tile(seen_B, layers * heads)[:, None]
  position_RS = jnp.maximum(seen_R1 - old_R1, sinks) + jnp.arange(most)
  leaves_RS = position_RS < seen_R1 - new_R1

  def at(position_RM: jax.Array) -> tuple[jax.Array, jax.Array]:
    slot_RM = sinks + (position_RM - sinks) % old_R1
    return tuple(jnp.take_along_axis(x, slot_RM[..., None], 1, mode="clip") for x in (key_RSK, value_RSV))

  def fetch(_, index_RNM: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = index_RNM.shape
    return tuple(x.reshape(*shape, 1, -1) for x in at(index_RNM.reshape(len(index_RNM), -1)))

  def by_row(x_R: jax.Array) -> jax.Array:
    x_LHB = x_R.reshape(layers, heads, batch, *x_R.shape[1:])
    return jnp.moveaxis(x_LHB, 1, 3).reshape(layers * batch, x_R.shape[1], heads, *x_R.shape[2:])

  left = Leaving(*map(by_row, (*keep_only(leaves_RS, at(position_RS)), position_RS, leaves_RS)))
  if picks is None:
    return left, None
  before_RC1 = jnp.moveaxis(picks.partition_BCH, 3, 1).reshape(len(old_R1), -1, 1)
  scores = score_leaving(fetch, position_RS, leaves_RS, leaves_RS, before_RC1, sinks=sinks)
  return left, jax.tree.map(lambda x_RC1: by_row(x_RC1[..., 0]), scores)


def _as_rows(tree):
  """Arrays [L, B, …] → [L·B, …]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _as_layers(tree, layers: int):
  return jax.tree.map(lambda x: x.reshape(layers, -1, *x.shape[1:]), tree)


def _stack(trees: list, axis: int):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *trees)
