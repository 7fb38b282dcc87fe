"""Who may attend to whom: the order of tokens as data, and the visibility rule built on it."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.ops.documents import EMPTY


@flax.struct.dataclass
class Order:
  """The order of tokens along their rows, and their documents.

  index_BT: int32, grows by one a token along the row, whatever the document; only differences matter.
  id_BT: int32 document, EMPTY for a slot without a token. As a key it is visible to no query.
  """

  index_BT: jax.Array
  id_BT: jax.Array


def allowed(
  query_order: Order, key_order: Order, *, window: int | jax.Array, skip: int | jax.Array = 0) -> jax.Array:
  """Bool [B, T, S]: same document, at least `skip` and fewer than `window` tokens back (the number 0 = no limit)."""
  back_BTS = query_order.index_BT[:, :, None] - key_order.index_BT[:, None, :]
  same_BTS = (query_order.id_BT[:, :, None] == key_order.id_BT[:, None, :]) & (key_order.id_BT != EMPTY)[:, None, :]
  near_BTS = back_BTS < window if _is_limit(window) else True
  return same_BTS & (back_BTS >= skip) & near_BTS


def block_reach(
  query_order: Order, key_order: Order, *, query_block: int, key_block: int, window: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
  """First and one-past-last key block that any token of each query block may see, int32 [query blocks] each.

  Bounds hold for all rows together, so they are conservative; a query block that sees nothing gets an empty range.
  """
  near, far = _block_bounds(query_order, query_block), _block_bounds(key_order, key_block)
  query_min, query_max, query_min_id, query_max_id = (bound_BN[:, :, None] for bound_BN in near)
  key_min, key_max, key_min_id, key_max_id = (bound_BN[:, None, :] for bound_BN in far)
  meets_BNN = (query_max >= key_min) & (query_min_id <= key_max_id) & (key_min_id <= query_max_id)
  if _is_limit(window):
    meets_BNN &= query_min - key_max < window
  meets_NN = meets_BNN.any(0)
  num_keys = meets_NN.shape[1]
  first_N = jnp.where(meets_NN.any(1), meets_NN.argmax(1), 0)
  stop_N = jnp.where(meets_NN.any(1), num_keys - meets_NN[:, ::-1].argmax(1), 0)
  return first_N.astype(jnp.int32), stop_N.astype(jnp.int32)


def _is_limit(window: int | jax.Array) -> bool:
  return not isinstance(window, int) or window > 0


def _block_bounds(order: Order, block: int) -> tuple[jax.Array, ...]:
  """Least and greatest index, least and greatest id of the tokens in each block; an empty block meets nothing."""
  batch = order.id_BT.shape[0]
  is_token = order.id_BT != EMPTY

  def bound(values_BT, reduce, empty):
    return reduce(jnp.where(is_token, values_BT, empty).reshape(batch, -1, block), axis=-1)

  big = 2**30  # a quarter of the range: differences of two bounds cannot overflow
  return (bound(order.index_BT, jnp.min, big), bound(order.index_BT, jnp.max, -big),
          bound(order.id_BT, jnp.min, big), bound(order.id_BT, jnp.max, -big))
