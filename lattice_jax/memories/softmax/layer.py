"""Softmax attention as a memory layer: all earlier tokens (up to a cache length) or a window of them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.cache.compact import compact
from lattice_jax.cache.kv_cache import CacheView, KVCache, empty_cache
from lattice_jax.cache.policy import make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.config import CacheConfig
from lattice_jax.memories.softmax.config import AttentionConfig
from lattice_jax.modules import offset, rms_normalize, weight
from lattice_jax.ops.attention import Order, attend, merge
from lattice_jax.ops.attention.window_cache import WindowCache, empty_window, shift_tokens
from lattice_jax.ops.documents import document_after, document_runs
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
    attention, dtype = self.config, jnp.dtype(self.dtype)
    if self.window:
      return empty_window(
        batch, self.window, attention.kv_heads, attention.key_dim, attention.value_dim, dtype)
    policy = make_policy(self.cache)
    return empty_cache(attention, policy, batch, policy.num_slots(max_len), dtype)

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: WindowCache | KVCache | CacheView, segment: Segment, *, train: bool,
  ) -> LayerOutput:
    """See `types.LayerOutput`; no losses, metrics or statistics.

    One layer of a stack of caches, a `CacheView`, is written in place; whoever owns the stack compacts it.
    """
    del train
    config, dtype, dim = self.config, jnp.dtype(self.dtype), x_BTD.shape[-1]
    x_BTD = jnp.where(segment.valid_BT[..., None], x_BTD, 0).astype(dtype)

    def project(name, heads, width, axes):
      return jnp.einsum("BTD,DHK->BTHK", x_BTD, weight(
        self, name, (dim, heads, width), ("embed", *axes), fan_in=dim).astype(dtype))

    def project_with_bias(name, heads, width, axes):
      x_BTHK = project(name, heads, width, axes)
      return x_BTHK if config.bias == "none" else x_BTHK + offset(
        self, f"{name}_bias", (heads, width), axes).astype(dtype)

    q_BTQK = project_with_bias("query", config.heads, config.key_dim, ("heads", "key"))
    k_BTHK = project_with_bias("key", config.kv_heads, config.key_dim, ("kv_heads", "key"))
    v_BTHV = project_with_bias("value", config.kv_heads, config.value_dim, ("kv_heads", "value"))
    if config.qk_norm:
      q_BTQK, k_BTHK = rms_normalize(q_BTQK).astype(dtype), rms_normalize(k_BTHK).astype(dtype)
    if config.rope_theta:
      q_BTQK, k_BTHK = (
        rotate(x_BTHK, segment.positions_BT, theta=config.rope_theta, scaling=config.rope_scaling)
        for x_BTHK in (q_BTQK, k_BTHK))
    if config.gated:
      v_BTHV = nn.silu(v_BTHV)
    attend = self._attend_window if self.window else self._attend_cache
    out_BTQV, state = attend(q_BTQK, k_BTHK, v_BTHV, state, segment)
    out_BTQV = out_BTQV.astype(dtype)
    if config.gated:
      out_BTQV *= nn.silu(project("gate", config.heads, config.value_dim, ("heads", "value")))
    out_QVD = weight(self, "out", (config.heads, config.value_dim, dim), ("heads", "value", "embed"),
                     fan_in=config.heads * config.value_dim)
    y_BTD = jnp.einsum("BTQV,QVD->BTD", out_BTQV, out_QVD.astype(dtype))
    if config.bias == "all":
      y_BTD += offset(self, "out_bias", (dim,), ("embed",)).astype(dtype)
    return LayerOutput(y_BTD=y_BTD, state=state, losses={}, metrics={}, statistics={})

  def _attend_cache(self, q_BTQK, k_BTHK, v_BTHV, state, segment):
    """Attention to the call's own tokens and to the cache, and the cache after them."""
    policy = make_policy(self.cache)
    is_stacked = isinstance(state, CacheView)
    view = state if is_stacked else CacheView.alone(state)
    out_BTQV, view = read_and_append(policy, q_BTQK, k_BTHK, v_BTHV, view, segment, impl=self.impl)
    if is_stacked or not state.num_slots:
      return out_BTQV, view if is_stacked else state
    stack = compact(policy, {"memory": view.stack}, call_len=q_BTQK.shape[1])["memory"]
    return out_BTQV, jax.tree.map(lambda leaf: leaf[0], stack)

  def _attend_window(self, q_BTQK, k_BTHK, v_BTHV, state, segment):
    """Attention to the call's own tokens merged with attention to the window before them, and the window after."""
    id_BT = document_runs(segment.ids_BT, segment.valid_BT, state.document_B)
    query = Order(index_BT=jnp.broadcast_to(jnp.arange(id_BT.shape[1]), id_BT.shape), id_BT=id_BT)
    options = {"window": self.window, "impl": self.impl}
    own = attend(q_BTQK, k_BTHK, v_BTHV, query, query, **options)
    past = attend(q_BTQK, state.key_BSHK, state.value_BSHV, query, state.order, **options)
    document_B = document_after(segment.ids_BT, segment.valid_BT, state.document_B)
    return merge(*own, *past)[0], shift_tokens(state, k_BTHK, v_BTHV, id_BT, document_B)
