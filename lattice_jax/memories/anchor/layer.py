"""Anchor attention as a memory layer (arXiv 2402.07616): a segment that ends is remembered by its anchor alone."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.fields import check_fields
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.split import split_anchor_attention
from lattice_jax.memories.anchor.state import AnchorCache, AnchorView, empty_cache
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.attention_frame import attention_layer
from lattice_jax.memories.entry import enter_layer
from lattice_jax.types import LayerOutput, Segment


class AnchorAttention(nn.Module):
  """Multi-head, multi-query or grouped-query attention in which closed segments are seen by their anchors alone.

  Which tokens are anchors comes with the segment, as marks. It has the parameters of `SoftmaxAttention`. With
  `max_len` 0 it forgets between calls.
  """

  config: AttentionConfig
  anchor: AnchorConfig = AnchorConfig()
  dtype: str = "float32"
  impl: str = "auto"

  def init_state(self, batch: int, max_len: int = 0) -> AnchorCache:
    """A cache without tokens."""
    config = self.config
    return empty_cache(
      self.anchor, batch, max_len, heads=config.kv_heads, key_dim=config.key_dim, value_dim=config.value_dim,
      dtype=jnp.dtype(self.dtype))

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: AnchorCache | AnchorView | None = None, segment: Segment | None = None, *,
    train: bool = False,
  ) -> LayerOutput:
    """See `types.LayerOutput`; no losses, metrics or statistics.

    One layer of a stack of caches, an `AnchorView`, is written in place; whoever owns the stack clears it.
    """
    del train
    check_fields(self.anchor, "AnchorConfig.")
    if not isinstance(state, AnchorView):
      state, segment = enter_layer(self, x_BTD, state, segment)

    def attend(q, k, v):
      # Kept only where the collection is asked for, by the report on anchors.
      self.sow("intermediates", "op_inputs", {"q": q, "k": k})
      return split_anchor_attention(q, k, v, state, segment, config=self.anchor, impl=self.impl)

    return attention_layer(self, self.config, x_BTD, segment, attend)
