"""Softmax attention of a call's tokens to one another and to what a state holds of earlier ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.cache.compact import compact
from lattice_jax.cache.kv_cache import CacheView, KVCache, empty_cache
from lattice_jax.cache.policy import make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.config import CacheConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.ops.attention import Order, attend, merge
from lattice_jax.ops.attention.window_cache import WindowCache, empty_window, shift_tokens
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.documents import document_after, document_runs
from lattice_jax.types import Segment, whole_segment

__all__ = ["empty_state", "softmax_attention"]


def empty_state(
  config: AttentionConfig, cache: CacheConfig, batch: int, *, window: int = 0, max_len: int = 0,
  dtype: jnp.dtype = jnp.float32,
) -> WindowCache | KVCache:
  """A state without tokens: of a window, or with room for documents of `max_len` tokens under the policy of `cache`."""
  if window:
    return empty_window(batch, window, config.kv_heads, config.key_dim, config.value_dim, dtype)
  policy = make_policy(cache)
  return empty_cache(config, policy, batch, policy.num_slots(max_len), dtype)


def softmax_attention(
  q: Float[Array, "B T Q K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H V"],
  state: WindowCache | KVCache | CacheView | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, marks: Int[Array, "B T"] | None = None, window: int = 0,
  max_len: int = 0, cache: CacheConfig | None = None, impl: str = "auto",
) -> tuple[Float[Array, "B T Q V"], WindowCache | KVCache | CacheView]:
  """Attends every query to the tokens of its document up to its own, and moves the state on.

  Args:
    q: queries, positions included; Q = H·G, query head h·G + g reads key/value head h.
    k, v: keys and values of the same tokens.
    state: what came before; None starts without tokens. One layer of a stack of caches, a `CacheView`, is written in
      place, and whoever owns the stack compacts it.
    ids, valid: document of each token; invalid tokens (a suffix) leave the state alone. None: one document, all valid.
    marks: of each token, for policies that read them (`types.make_marks`).
    window: tokens that a query sees, itself included, and that the state holds; 0 = all that the cache keeps.
    max_len: tokens of a document for which a first state without window has room; with 0 it forgets between calls.
    cache: policy of that room; None keeps every token.

  Returns:
    Output in fp32 and the next state.

  Raises:
    ValueError: the policy keeps marked tokens, and there are no marks.
  """
  cache, segment = cache or CacheConfig(), whole_segment(*q.shape[:2])
  if marks is None and not window and make_policy(cache).records_marks:
    raise ValueError(f"the cache policy {cache.policy!r} keeps the tokens that are marked as separators, and "
                     "attention was given no marks; give it types.make_marks(tokens, anchors=ids), a layer as the "
                     "marks_BT of its segment.")
  given = {"ids_BT": ids, "valid_BT": valid, "marks_BT": marks}
  segment = segment.replace(**{field: array for field, array in given.items() if array is not None})
  if isinstance(state, CacheView):
    return read_and_append(make_policy(cache), q, k, v, state, segment, impl=impl)
  config = AttentionConfig(heads=q.shape[2], kv_heads=k.shape[2], key_dim=k.shape[3], value_dim=v.shape[3])
  room = max_len if state is None else 0  # a state that is given may have any
  state, *_ = complete_call("softmax_attention", state, ids, valid, like=q, empty=lambda: empty_state(
    config, cache, len(q), window=window, max_len=room, dtype=k.dtype))
  if window:
    return _attend_window(q, k, v, state, segment, window, impl)
  out_BTQV, view = read_and_append(make_policy(cache), q, k, v, CacheView.alone(state), segment, impl=impl)
  if not state.num_slots:
    return out_BTQV, state
  stack = compact(make_policy(cache), {"memory": view.stack}, call_len=q.shape[1])["memory"]
  return out_BTQV, jax.tree.map(lambda leaf: leaf[0], stack)


def _attend_window(q, k, v, state, segment: Segment, window, impl):
  """Attention to the call's own tokens merged with attention to the window before them, and the window after."""
  id_BT = document_runs(segment.ids_BT, segment.valid_BT, state.document_B)
  query = Order(index_BT=jnp.broadcast_to(jnp.arange(id_BT.shape[1]), id_BT.shape), id_BT=id_BT)
  own = attend(q, k, v, query, query, window=window, impl=impl)
  past = attend(q, state.key_BSHK, state.value_BSHV, query, state.order, window=window, impl=impl)
  document_B = document_after(segment.ids_BT, segment.valid_BT, state.document_B)
  return merge(*own, *past)[0], shift_tokens(state, k, v, id_BT, document_B)
