"""Attention of a call's tokens to themselves and to the cache before them, and the attention that a policy records."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lattice_jax.cache.append import Arrivals
from lattice_jax.cache.kv_cache import CacheView
from lattice_jax.cache.policy import Policy
from lattice_jax.ops.attention import Order, attend, attend_itself, merge
from lattice_jax.ops.attention.keys import allowed
from lattice_jax.ops.attention.mass import received_mass
from lattice_jax.ops.attention.slots import Readers, Rule, SinksAndWindow, attend_slots, slots_seen
from lattice_jax.ops.documents import EMPTY


def attend_new(
  policy: Policy, q_BTQK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, arriving: Arrivals, *, impl: str,
  query: Order | None = None, key: Order | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attention to the call's own tokens: output and log-sum-exp, float32.

  query: where only some of them are queries. key: where only some are keys, those of `arriving`.
  """
  order = order_of(arriving) if key is None else key
  query = order if query is None else query
  if k_BTHK.shape[1] == 1 and key is None:
    return attend_itself(q_BTQK, k_BTHK, v_BTHV, order.id_BT != EMPTY)
  out, lse = attend(q_BTQK, k_BTHK, v_BTHV, query, order, window=policy.window, impl=impl)
  if not policy.window or not policy.sinks:
    return out, lse
  is_sink_BT = arriving.index_BT < policy.sinks
  sinks = order.replace(id_BT=jnp.where(is_sink_BT, order.id_BT, EMPTY))
  return merge(out, lse, *attend(q_BTQK, k_BTHK, v_BTHV, query, sinks, skip=policy.window, impl=impl))


def attend_cache(
  policy: Policy, q_BTQK: jax.Array, view: CacheView, arriving: Arrivals, before: tuple[jax.Array, jax.Array], *,
  impl: str,
) -> tuple[jax.Array, jax.Array]:
  """Attention to the tokens that the cache holds, and to those of `before`, whose output and log-sum-exp it has."""
  return attend_slots(
    q_BTQK, view.slots, _readers(arriving), before, rule=_rule(policy), impl=impl)


def note_mass(
  policy: Policy, q_BTQK: jax.Array, lse_BTQ: jax.Array, k_BTHK: jax.Array, view: CacheView, arriving: Arrivals,
) -> tuple[CacheView, jax.Array | None]:
  """Adds the attention that each slot received now; also returns what the call's own tokens received.

  lse_BTQ: the log-sum-exp over both together. Where the policy records no attention, nothing changes, and the second
  result is None.
  """
  if not policy.records_mass:
    return view, None
  stack, layer, order = view.stack, view.layer, order_of(arriving)
  position_BHS = stack.position_BHS[layer]
  past_BHS = received_mass(
    q_BTQK, lse_BTQ, stack.key_BHSK[layer], _readers(arriving),
    lambda readers: slots_seen(readers, position_BHS, _rule(policy)))
  own_BHT = received_mass(
    q_BTQK, lse_BTQ, jnp.moveaxis(k_BTHK, 1, 2), order, lambda query: allowed(query, order, window=0)[:, None])
  mass_BHS = stack.mass_BHS.at[layer].add(past_BHS)
  return view.replace(stack=stack.replace(mass_BHS=mass_BHS)), jnp.moveaxis(own_BHT, 1, 2)


def order_of(arriving: Arrivals) -> Order:
  """A call's tokens as queries and as keys."""
  time_T = jnp.arange(arriving.run_BT.shape[1])
  return Order(index_BT=jnp.broadcast_to(time_T, arriving.run_BT.shape), id_BT=arriving.run_BT)


def _readers(arriving: Arrivals) -> Readers:
  return Readers(index_BT=arriving.index_BT, sees_BT=arriving.run_BT == 0)


def _rule(policy: Policy) -> Rule | None:
  return SinksAndWindow(policy.sinks, policy.window) if policy.window else None
