"""Linear attention as a memory layer: nothing decays, one factor a head decays, or one factor a key channel.

Gates are those of the papers' own code.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.gated_linear.config import GatedLinearConfig
from lattice_jax.memories.gated_linear.op import MatrixState, empty_state, gated_linear
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.modules import parameter
from lattice_jax.types import Segment, SumCount

Result = tuple[jax.Array, MatrixState, dict[str, SumCount]]

_GLA_DIVISOR = 16  # logits of decays are divided by it, which keeps decays near one at the start


class LinearAttention(RecurrentMemory):
  """Keys and values are summed, and nothing decays."""

  config: GatedLinearConfig

  @property
  def unit_eps(self) -> float:
    return self.config.unit_eps

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    if self.config.features == "unit":
      return super().feature(name, x_BTHK)
    return nn.silu(x_BTHK) if self.config.features == "silu" else x_BTHK

  def empty(self, batch: int) -> MatrixState:
    return empty_state(batch, self.config.heads, self.key_dim, self.config.value_dim)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    return self.add(q_BTHK, k_BTHK, v_BTHV, None, state, segment)

  def add(self, q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment: Segment) -> Result:
    """Decays the memory, then adds to it."""
    out_BTHV, state = gated_linear(
      q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment.ids_BT, segment.valid_BT, chunk_len=self.config.chunk_len,
      impl=self.impl)
    return out_BTHV, state, {}


class ScalarDecay(LinearAttention):
  """Mamba-2: one decay a token and head, which also says how much is written, and values on a short cut."""

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    decay_BTH1, width_BTH1 = self.head_decay(x_BTD)
    out_BTHV, state, metrics = self.add(q_BTHK, width_BTH1 * k_BTHK, v_BTHV, decay_BTH1, state, segment)
    skip_H = parameter(self, "skip", nn.initializers.ones, (self.config.heads,), ("heads",))
    return out_BTHV + skip_H[:, None] * v_BTHV, state, metrics


class GLA(LinearAttention):
  """One decay a key channel, from a projection of low rank."""

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    logit_BTHK = self.low_rank_logit("decay", x_BTD, self.config.gate_rank, self.config.key_dim, "key")
    decay_BTHK = jnp.exp(jax.nn.log_sigmoid(logit_BTHK) / _GLA_DIVISOR)
    return self.add(q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment)
