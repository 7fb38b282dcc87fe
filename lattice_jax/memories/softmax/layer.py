"""Softmax attention as a memory layer: all earlier tokens (up to a cache length) or a window of them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.cache.kv_cache import CacheView, KVCache
from lattice_jax.config import CacheConfig
from lattice_jax.memories.entry import enter_layer
from lattice_jax.memories.softmax.config import AttentionConfig, check
from lattice_jax.memories.softmax.op import empty_state, softmax_attention
from lattice_jax.modules import join_heads, offset, rms_normalize, split_heads
from lattice_jax.ops.attention.window_cache import WindowCache
from lattice_jax.ops.rotary import rotate
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
    check(self.config)
    if not isinstance(state, CacheView):
      state, segment = enter_layer(self, x_BTD, state, segment)
    config, dtype, dim = self.config, jnp.dtype(self.dtype), x_BTD.shape[-1]
    x_BTD = jnp.where(segment.valid_BT[..., None], x_BTD, 0).astype(dtype)

    def project(name, heads, width, axes):
      x_BTHK = split_heads(self, name, x_BTD, heads, width, axes)
      return x_BTHK if config.bias == "none" else x_BTHK + offset(
        self, f"{name}_bias", (heads, width), axes).astype(dtype)

    q_BTQK = project("query", config.heads, config.key_dim, ("heads", "key"))
    k_BTHK = project("key", config.kv_heads, config.key_dim, ("kv_heads", "key"))
    v_BTHV = project("value", config.kv_heads, config.value_dim, ("kv_heads", "value"))
    if config.qk_norm:
      q_BTQK, k_BTHK = rms_normalize(q_BTQK).astype(dtype), rms_normalize(k_BTHK).astype(dtype)
    if config.rope_theta:
      q_BTQK, k_BTHK = (
        rotate(x_BTHK, segment.positions_BT, theta=config.rope_theta, scaling=config.rope_scaling)
        for x_BTHK in (q_BTQK, k_BTHK))
    if config.gated:
      v_BTHV = nn.silu(v_BTHV)
    out_BTQV, state = softmax_attention(
      q_BTQK, k_BTHK, v_BTHV, state, segment.ids_BT, segment.valid_BT, marks=segment.marks_BT, window=self.window,
      cache=self.cache, impl=self.impl)
    out_BTQV = out_BTQV.astype(dtype)
    if config.gated:
      out_BTQV *= nn.silu(split_heads(self, "gate", x_BTD, config.heads, config.value_dim, ("heads", "value")))
    y_BTD = join_heads(self, out_BTQV, dim)
    if config.bias == "all":
      y_BTD += offset(self, "out_bias", (dim,), ("embed",)).astype(dtype)
    return LayerOutput(y_BTD=y_BTD, state=state, losses={}, metrics={}, statistics={})
