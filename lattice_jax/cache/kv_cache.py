"""The cache as a pytree: keys, values and positions of the tokens that every row and head keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.cache.policy import Policy, make_policy
from lattice_jax.cache.stack_view import StackView
from lattice_jax.config import ModelConfig
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.ops.attention.slots import StackedSlots
from lattice_jax.ops.documents import EMPTY

NUM_COUNTS = 5  # int32 fields of a row: base, length, filled, seen, document


@flax.struct.dataclass
class KVCache:
  """Slots [0, length) of a row hold tokens of one document; all heads of a row use equally many slots.

  key_BHSK, value_BHSV: as they were computed, rotary embedding included. position_BHS: int32, the index in its document
  of the token in a slot; EMPTY for none. Positions differ from head to head once tokens are dropped.
  base_B: only policies in which all partitions compete score slots before it again. length_B: slots in use. filled_B:
  slots that may not be blank; more than `length` after a reset, until compaction clears them. seen_B: tokens of the
  document so far, dropped ones included. document_B: its id, EMPTY before any token.
  mass_BHS: float32, the attention that each slot has received, summed over queries and the heads that share its key.
  query_BWQK: the last queries, newest last. mark_BHS: int8, the marks of the token in a slot, 0 for none.
  These three have no slots where the policy does not need them.
  summary: what the policy's fold has made of the tokens that left; None without a fold.
  """

  key_BHSK: jax.Array
  value_BHSV: jax.Array
  position_BHS: jax.Array
  base_B: jax.Array
  length_B: jax.Array
  filled_B: jax.Array
  seen_B: jax.Array
  document_B: jax.Array
  mass_BHS: jax.Array
  query_BWQK: jax.Array
  mark_BHS: jax.Array
  summary: Any = None

  @property
  def num_slots(self) -> int:
    """Room for tokens; with 0 nothing is remembered."""
    return self.key_BHSK.shape[-2]


@flax.struct.dataclass
class CacheView(StackView):
  """One layer of a stack of `KVCache`."""

  @property
  def slots(self) -> StackedSlots:
    """What attention reads."""
    return StackedSlots(
      key_LBHSK=self.stack.key_BHSK, value_LBHSV=self.stack.value_BHSV, position_LBHS=self.stack.position_BHS,
      layer=self.layer, length_B=self.stack.length_B[self.layer])


def empty_cache(
  attention: AttentionConfig, policy: Policy, batch: int, num_slots: int, dtype: jnp.dtype) -> KVCache:
  """A cache of one layer without tokens."""
  slots_BHS = batch, attention.kv_heads, num_slots
  num_queries = policy.num_queries if num_slots else 0

  def numbers(start: int) -> jax.Array:
    return jnp.full((batch,), start, jnp.int32)

  return KVCache(
    key_BHSK=jnp.zeros((*slots_BHS, attention.key_dim), dtype),
    value_BHSV=jnp.zeros((*slots_BHS, attention.value_dim), dtype),
    position_BHS=jnp.full(slots_BHS, EMPTY, jnp.int32),
    base_B=numbers(policy.sinks), length_B=numbers(0), filled_B=numbers(0), seen_B=numbers(0),
    document_B=numbers(EMPTY),
    mass_BHS=jnp.zeros((*slots_BHS[:2], num_slots if policy.records_mass else 0), jnp.float32),
    query_BWQK=jnp.zeros((batch, num_queries, attention.heads, attention.key_dim), dtype),
    mark_BHS=jnp.zeros((*slots_BHS[:2], num_slots if policy.records_marks else 0), jnp.int8),
    summary=policy.fold and policy.fold.init_summary(
      batch, attention.kv_heads, attention.key_dim, attention.value_dim))


def caches_of(state: Mapping[str, Any]) -> dict[str, KVCache]:
  """The stacks of caches in a decoder's state, by block of the pattern; other memories are left out."""
  return {name: memory for name, memory in state.items() if isinstance(memory, KVCache)}


def cache_bytes(model: ModelConfig, batch: int, max_len: int) -> int:
  """Bytes of a decoder's caches, all layers together: what `init_state(model, batch, max_len)` allocates for them."""
  policy, attention, itemsize = make_policy(model.cache), model.attention, jnp.dtype(model.dtype).itemsize
  layers = model.layers // len(model.pattern) * model.pattern.count("attention")
  num_slots = policy.num_slots(max_len)
  slot = itemsize * (attention.key_dim + attention.value_dim) + 4 + 4 * policy.records_mass + policy.records_marks
  queries = itemsize * policy.num_queries * attention.heads * attention.key_dim if num_slots else 0
  return layers * batch * (num_slots * attention.kv_heads * slot + queries + 4 * NUM_COUNTS)
