"""Gated slot attention as a memory layer; its gates are those of the paper's own code."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.gated_slots.config import GatedSlotsConfig
from lattice_jax.memories.gated_slots.op import SlotState, empty_state, gated_slots
from lattice_jax.memories.recurrent import RecurrentMemory

_DIVISOR = 8  # logits of decays are divided by it, which keeps decays near one at the start


class GatedSlots(RecurrentMemory):
  """Softmax over slots whose keys and values are moving averages; q and k keep their lengths, which scores need."""

  config: GatedSlotsConfig

  def empty(self, batch: int) -> SlotState:
    config = self.config
    return empty_state(batch, config.heads, config.slots, config.key_dim, config.value_dim)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return nn.silu(x_BTHK)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    logit_BTHM = self.project("decay", x_BTD, self.config.slots, "slots").astype(jnp.float32)
    log_decay_BTHM = jax.nn.log_sigmoid(logit_BTHM) / _DIVISOR
    out_BTHV, state = gated_slots(
      q_BTHK, k_BTHK, v_BTHV, -jnp.expm1(log_decay_BTHM), jnp.exp(log_decay_BTHM), state, segment.ids_BT,
      segment.valid_BT, chunk_len=self.config.chunk_len, impl=self.impl)
    return out_BTHV, state, {}
