"""Gated slot attention as a memory layer; its gates are those of the paper's own code.

What else is theirs where the config says `faithful`, the README says.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.gated_slots.config import GatedSlotsConfig, check
from lattice_jax.memories.gated_slots.op import SlotState, empty_state, gated_slots
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.ops.sequence import relay_call

_DIVISOR = 8  # logits of decays are divided by it, which keeps decays near one at the start


class GatedSlots(RecurrentMemory):
  """Softmax over slots whose keys and values are moving averages; q and k keep their lengths, which scores need."""

  config: GatedSlotsConfig

  def check(self) -> None:
    check(self.config)

  def empty(self, batch: int) -> SlotState:
    config = self.config
    return empty_state(
      batch, config.heads, config.slots, config.key_dim, config.value_dim, dtype=self.state_dtype)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    # the published layer has one SiLU of its convolutions and another of its features
    is_twice = self.config.faithful and self.config.conv_width
    return nn.silu(nn.silu(x_BTHK)) if is_twice else nn.silu(x_BTHK)

  def finish(self, x_BTD: jax.Array, out_BTHV: jax.Array) -> jax.Array:
    if not self.config.faithful:
      return super().finish(x_BTD, out_BTHV)
    return self.norm_all_heads(nn.silu(out_BTHV)).astype(x_BTD.dtype)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    logit_BTHM = self.project("decay", x_BTD, self.config.slots, "slots").astype(self.state_dtype)
    log_decay_BTHM = jax.nn.log_sigmoid(logit_BTHM) / _DIVISOR
    op = functools.partial(gated_slots, chunk_len=self.config.chunk_len, impl=self.impl)
    tokens = q_BTHK, k_BTHK, v_BTHV, -jnp.expm1(log_decay_BTHM), jnp.exp(log_decay_BTHM)
    return relay_call(op, tokens, state, segment.ids_BT, segment.valid_BT)
