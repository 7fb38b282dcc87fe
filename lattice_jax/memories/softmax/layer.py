"""Softmax attention as a memory layer: all earlier tokens (up to a cache length) or a window of them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.cache.kv_cache import CacheView, KVCache
from lattice_jax.config import CacheConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.attention_frame import attention_layer
from lattice_jax.memories.entry import enter_layer
from lattice_jax.memories.softmax.op import empty_state
from lattice_jax.memories.softmax.split import split_softmax_attention
from lattice_jax.ops.attention.window_cache import WindowCache
from lattice_jax.types import LayerOutput, Segment


class SoftmaxAttention(nn.Module):
  """Multi-head, multi-query or grouped-query attention with rotary positions.

  `window` > 0 sees and remembers the last `window` tokens. `window` = 0 sees the tokens that the policy of
  `cache` keeps, for documents of at most the `max_len` that `init_state` was given; with max_len 0 it forgets
  between calls.
  With `gated`, values pass SiLU and the output a SiLU gate: the attention of a gated attention unit.
  """

  config: AttentionConfig
  cache: CacheConfig = CacheConfig()
  window: int = 0
  dtype: str = "float32"
  impl: str = "auto"

  def init_state(self, batch: int, max_len: int = 0) -> WindowCache | KVCache:
    """A cache without tokens."""
    return empty_state(
      self.config, self.cache, batch, window=self.window, max_len=max_len, dtype=jnp.dtype(self.dtype))

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: WindowCache | KVCache | CacheView | None = None, segment: Segment | None = None, *,
    train: bool = False,
  ) -> LayerOutput:
    """See `types.LayerOutput`; no losses, metrics or statistics.

    One layer of a stack of caches, a `CacheView`, is written in place; whoever owns the stack compacts it.
    """
    del train
    marks_BT = None if segment is None else segment.marks_BT
    if not isinstance(state, CacheView):
      state, segment = enter_layer(self, x_BTD, state, segment)

    def attend(q, k, v):
      # Kept only where the collection is asked for, by reports on attention.
      self.sow("intermediates", "op_inputs", {"q": q, "k": k, "v": v})
      return split_softmax_attention(
        q, k, v, state, segment, window=self.window, cache=self.cache, impl=self.impl, marks=marks_BT,
        exchange=self.config.exchange)

    return attention_layer(self, self.config, x_BTD, segment, attend)
