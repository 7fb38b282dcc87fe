"""Keys and values of any attention, as a cache policy would keep them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from lattice_jax.cache.append import append, arrivals
from lattice_jax.cache.config import CacheConfig
from lattice_jax.cache.convert import compress_caches
from lattice_jax.cache.kv_cache import CacheView, KVCache, empty_cache
from lattice_jax.cache.policies.full import FullConfig
from lattice_jax.cache.policy import Policy, check_cache, make_policy
from lattice_jax.cache.step import read_and_append
from lattice_jax.evaluation.caches import parse_cache
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.types import whole_segment


def compress_kv(
  k: ArrayLike, v: ArrayLike, policy: str | CacheConfig, *, q: ArrayLike | None = None, valid: ArrayLike | None = None,
  marks: ArrayLike | None = None,
) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H V"], Int[Array, "B S H"]]:
  """What the policy keeps of T tokens, and where each stood.

  Args:
    k, v: [B, T, H, K] and [B, T, H, V], keys and values as attention reads them, rotary embedding included.
    policy: as eval.py's --cache has it, such as "lagkv:ratio=0.25" (docs/cache_policies.md), or a `CacheConfig`.
    q: [B, T, H·G, K], queries of the same tokens, for the policies h2o, snapkv and tova; query head h·G + g reads
      head h.
    marks: [B, T], for the policy sep: which tokens are separators, as bool or as `types.make_marks` has it (bit 1).
    valid: [B, T], which tokens there are, a prefix of every row; None is all.

  Returns:
    k, v and positions of the S tokens that are kept, oldest first. S follows from T and the policy. Heads keep
    different tokens but equally many; where a row keeps fewer than S, the rest is zeros at position −1.

  Raises:
    ValueError: there is no such policy, its budget cannot be kept, or it needs queries or marks and there are none.
  """
  k, v, q, valid, marks = (None if x is None else jnp.asarray(x) for x in (k, v, q, valid, marks))
  config = policy if isinstance(policy, CacheConfig) else parse_cache(policy)
  check_cache(config)
  policy = make_policy(config)
  _check_arrays(config.policy, policy, k, v, q)
  _check_marks(config.policy, policy, k, marks)
  return _compress(policy, k, v, q, valid, marks)


@functools.partial(jax.jit, static_argnums=0)
def _compress(
  policy: Policy, k: jax.Array, v: jax.Array, q: jax.Array | None, valid: jax.Array | None,
  marks: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """All tokens into a cache that records what the policy asks for, and from there into one that keeps what it keeps."""
  batch, length, kv_heads, key_dim = k.shape
  attention = AttentionConfig(
    heads=kv_heads if q is None else q.shape[2], kv_heads=kv_heads, key_dim=key_dim, value_dim=v.shape[3])
  segment = whole_segment(batch, length)
  segment = segment if valid is None else segment.replace(valid_BT=valid)
  segment = segment if marks is None else segment.replace(marks_BT=marks.astype(jnp.int8))
  full = make_policy(CacheConfig(policy="full", full=FullConfig(
    records=("mass",) * policy.records_mass + ("queries",) * bool(policy.num_queries)
    + ("marks",) * policy.records_marks,
    observe=max(1, policy.num_queries))))
  view = CacheView.alone(empty_cache(attention, full, batch, length, k.dtype))
  if policy.records_mass or policy.num_queries:
    _, view = read_and_append(full, q, k, v, view, segment, impl="auto")
  else:
    counts, mark_BT = view.counts, segment.marks_BT if policy.records_marks else None
    arriving = arrivals(counts.seen_B, counts.document_B, segment)
    view = append(full, view, k, v, arriving, mark_BT=mark_BT)
  cache = compress_caches(policy, policy.num_slots(length), {"": view.stack})[""]
  return _in_order(jax.tree.map(lambda x_L: x_L[0], cache), policy.length_after(length), v.dtype)


def _check_arrays(name: str, policy: Policy, k: jax.Array, v: jax.Array, q: jax.Array | None) -> None:
  shapes = f"k of shape {k.shape} and v of shape {v.shape}"
  if k.ndim != 4 or v.ndim != 4 or k.shape[:3] != v.shape[:3]:
    raise ValueError(f"compress_kv was given {shapes}; it takes k [batch, tokens, heads, width] and v likewise, and "
                     "only their widths may differ.")
  if policy.config.skip_layers:
    raise ValueError(f"compress_kv was given skip_layers={policy.config.skip_layers}, and knows of no layers; leave it "
                     "out, and do not call it for the layers that are to stay whole.")
  if q is None and (policy.records_mass or policy.num_queries):
    raise ValueError(f"the policy {name!r} scores tokens by the attention that they receive, so compress_kv needs the "
                     "queries too; give q=[batch, tokens, query heads, key width].")
  if q is None:
    return
  if q.ndim != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]) or q.shape[2] % k.shape[2]:
    raise ValueError(f"compress_kv was given q of shape {q.shape} with {shapes}; q must have their rows and tokens, a "
                     "multiple of their heads, and the width of k.")


def _check_marks(name: str, policy: Policy, k: jax.Array, marks: jax.Array | None) -> None:
  if policy.records_marks and marks is None:
    raise ValueError(f"the policy {name!r} keeps the tokens that are marked as separators, so compress_kv needs to "
                     "know which those are; give marks=[batch, tokens] of booleans.")
  if marks is not None and (marks.shape != k.shape[:2] or jnp.issubdtype(marks.dtype, jnp.floating)):
    raise ValueError(f"compress_kv was given marks of shape {marks.shape} and type {marks.dtype} with k of shape "
                     f"{k.shape}; they are booleans, or whole numbers, one of each row's tokens.")


def _in_order(cache: KVCache, length: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The first `length` slots in the order of their positions, empty ones last; heads behind tokens."""
  order_BHS = jnp.argsort(cache.position_BHS.astype(jnp.uint32), axis=-1)[..., :length]  # EMPTY is the largest

  def take(x_BHS: jax.Array) -> jax.Array:
    index = order_BHS.reshape(*order_BHS.shape, *(1,) * (x_BHS.ndim - 3))
    return jnp.moveaxis(jnp.take_along_axis(x_BHS, index, axis=2), 2, 1)

  return take(cache.key_BHSK), take(cache.value_BHSV).astype(dtype), take(cache.position_BHS)
