"""Local attention as a memory layer: every head remembers the first tokens and as many of the last as it needs."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.attention_frame import attention_layer
from lattice_jax.memories.entry import enter_layer
from lattice_jax.memories.local.config import LocalConfig, check, window_rows
from lattice_jax.memories.local.far import find_fold
from lattice_jax.memories.local.maps import declare_maps
from lattice_jax.memories.local.split import split_local_attention
from lattice_jax.memories.local.state import LocalCache, LocalView, empty_cache
from lattice_jax.ops.local import group_heads
from lattice_jax.types import LayerOutput, Segment


class LocalAttention(nn.Module):
  """Multi-head, multi-query or grouped-query attention in which each key/value head has a window of its own.

  It has the parameters of `SoftmaxAttention`, which it equals where windows are 0, and those of the maps that make
  features where `local.far` asks for them. With `max_len` 0 it forgets between calls. Windows of several layers are
  those of a decoder's stack, of which the layer that it runs as is a `LocalView`.
  """

  config: AttentionConfig
  local: LocalConfig = LocalConfig()
  dtype: str = "float32"
  impl: str = "auto"

  def init_state(self, batch: int, max_len: int = 0) -> LocalCache:
    """A cache without tokens."""
    return self._empty(batch, max_len, layers=None)

  def init_stack(self, batch: int, max_len: int, layers: int) -> LocalCache:
    """The caches of a decoder's layers, without tokens."""
    return self._empty(batch, max_len, layers=layers)

  def _empty(self, batch: int, max_len: int, layers: int | None) -> LocalCache:
    config = self.config
    check(self.local)
    groups = group_heads(window_rows(self.local, layers or 1, config.kv_heads))
    return empty_cache(
      self.local, groups, batch, max_len, key_dim=config.key_dim, value_dim=config.value_dim,
      dtype=jnp.dtype(self.dtype), fold=find_fold(self.local, config.heads // config.kv_heads), layers=layers)

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: LocalCache | LocalView | None = None, segment: Segment | None = None, *,
    train: bool = False,
  ) -> LayerOutput:
    """See `types.LayerOutput`; no losses, metrics or statistics.

    One layer of a stack of caches, a `LocalView`, is written in place; whoever owns the stack clears it.
    """
    del train
    check(self.local)
    if not isinstance(state, LocalView):
      state, segment = enter_layer(self, x_BTD, state, segment)

    maps = declare_maps(self, self.config, self.local.summary) if self.local.far == "features" else None

    def attend(q, k, v):
      # kept only where the collection is asked for, by reports
      self.sow("intermediates", "op_inputs", {"q": q, "k": k, "v": v})
      return split_local_attention(q, k, v, state, segment, config=self.local, maps=maps, impl=self.impl)

    return attention_layer(self, self.config, x_BTD, segment, attend)
