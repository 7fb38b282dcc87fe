"""What a layer of local attention remembers: a ring for each window that its heads have, and how long its document is.

In a stack of layers whose windows differ, each ring is an array of exactly the layers that have its window, so that the
state is as large as the windows are and not as large as the widest.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.cache.stack_view import StackView
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.ops.documents import EMPTY
from lattice_jax.ops.far_summary import FarSummary
from lattice_jax.ops.local import HeadGroup, Picks, Ring, blank_unused, empty_picks, empty_ring, num_slots


@flax.struct.dataclass
class LocalCache:
  """What is kept, and how much was seen.

  rings: of each group of heads one for each of its windows, in their order.

  seen_B, document_B: as in `cache.kv_cache.KVCache`. stale_B: whether slots without a token may hold numbers still,
  until `clear`. summary: of what left the windows, as the layer's fold has it; None without one. picks: tokens that
  left them and stay as they are; None where none do. far_share_B: the share of attention that went to the summary,
  mean over heads, summed over the document's tokens; float32, without a gradient, None without a summary.
  """

  rings: tuple[Ring, ...]
  seen_B: jax.Array
  document_B: jax.Array
  stale_B: jax.Array
  summary: Any = None
  picks: Picks | None = None
  far_share_B: jax.Array | None = None

  @property
  def num_slots(self) -> int:
    """Slots of the widest ring; with 0 nothing is remembered."""
    return max(ring.num_slots for ring in self.rings)


@flax.struct.dataclass
class LocalView(StackView):
  """One layer of a stack of `LocalCache`."""

  def read(self, name: str) -> Any:
    """One of this layer's fields but the rings."""
    return jax.tree.map(
      lambda leaf: jax.lax.dynamic_index_in_dim(leaf, self.layer, keepdims=False), getattr(self.stack, name))

  def write(self, **fields: Any) -> LocalView:
    """The view with other values in some of this layer's fields but the rings."""
    return self.replace(stack=self.stack.replace(**{
      name: jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new.astype(leaf.dtype), self.layer, 0),
        getattr(self.stack, name), value)
      for name, value in fields.items()}))


def empty_cache(
  config: LocalConfig, groups: tuple[HeadGroup, ...], batch: int, max_len: int, *, key_dim: int, value_dim: int,
  dtype: jnp.dtype, fold: FarSummary | None = None, layers: int | None = None,
) -> LocalCache:
  """A cache without tokens, for documents of at most `max_len` tokens; 0 = one without room.

  layers: of the stack that the groups are of; None: the cache of one layer, without an axis in front.
  """
  rings = tuple(
    empty_ring(
      batch, len(group.heads), num_slots(config.sinks, window, max_len), key_dim, value_dim, dtype,
      layers=None if layers is None else group.layers_of(kind))
    for group in groups for kind, window in enumerate(group.windows))
  rows = (batch,) if layers is None else (layers, batch)
  heads, summary, picks = sum(len(group.heads) for group in groups), None, None
  if fold is not None:
    summary = fold.init_summary(batch, heads, key_dim, value_dim)
  if config.picks:
    picks = empty_picks(batch, heads, config.picks, config.pick_lag, key_dim, value_dim, dtype)
  if layers is not None:
    summary, picks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (layers, *leaf.shape)), (summary, picks))
  return LocalCache(
    rings=rings, summary=summary, picks=picks, seen_B=jnp.zeros(rows, jnp.int32),
    document_B=jnp.full(rows, EMPTY, jnp.int32), stale_B=jnp.zeros(rows, bool),
    far_share_B=None if fold is None else jnp.zeros(rows, jnp.float32))


def clear(stacks: dict[str, LocalCache]) -> dict[str, LocalCache]:
  """Blanks the keys and values of slots that hold no token, where some may still be there.

  There is one branch, and its other side is the identity; in any other form XLA copies the stacks at every step.
  """
  if not any(stack.num_slots for stack in stacks.values()):
    return stacks

  def clear_all(stacks):
    return {
      name: stack.replace(
        rings=tuple(blank_unused(ring, stack.seen_B[0]) for ring in stack.rings),
        stale_B=jnp.zeros_like(stack.stale_B))
      for name, stack in stacks.items()}

  is_due = jnp.stack([stack.stale_B.any() for stack in stacks.values()]).any()
  return jax.lax.cond(is_due, clear_all, dict, dict(stacks))
