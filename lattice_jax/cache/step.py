"""One call of a layer on its cache: attend, then append."""

from __future__ import annotations

import jax

from lattice_jax.cache.append import append, arrivals
from lattice_jax.cache.attend import attend_cache, attend_new, note_mass
from lattice_jax.cache.kv_cache import CacheView
from lattice_jax.cache.policy import Policy
from lattice_jax.ops.attention.slots import after_reading
from lattice_jax.types import Segment


def read_and_append(
  policy: Policy, q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, view: CacheView, segment: Segment, *,
  impl: str,
) -> tuple[jax.Array, CacheView]:
  """Attends, then appends the call's tokens; returns the output [B, T, H·G, V] in float32 and the cache.

  The owner of the stack compacts it once all layers have run.

  Raises:
    ValueError: the call is longer than the cache was made for.
  """
  _check_call(policy, q_BTQK.shape[1])
  before = view.counts
  arriving = arrivals(before.seen_B, before.document_B, segment)
  out_BTQV, lse_BTQ = attend_new(policy, q_BTQK, k_BTHK, v_BTHV, arriving, impl=impl)
  if not view.stack.num_slots:
    return out_BTQV, view
  out_BTQV, lse_BTQ = attend_cache(policy, q_BTQK, view, arriving, (out_BTQV, lse_BTQ), impl=impl)
  view, mass_BTH = note_mass(policy, q_BTQK, lse_BTQ, k_BTHK, view, arriving)
  view = view.replace(layer=after_reading(view.layer, lse_BTQ))
  return out_BTQV, append(
    policy, view, k_BTHK, v_BTHV, arriving, mass_BTH=mass_BTH, query_BTQK=q_BTQK if policy.num_queries else None,
    mark_BT=segment.marks_BT if policy.records_marks else None)


def _check_call(policy: Policy, length: int) -> None:
  most = policy.config.call_len
  if policy.lag and most and length > most:
    raise ValueError(
      f"a call of {length} tokens is longer than model.cache.call_len={most}, for which the cache has room; read the "
      f"text in pieces of at most {most} tokens, or set model.cache.call_len to {length} or to 0.")
