"""Linear attention as a memory layer: nothing decays, one factor a head decays, or one factor a key channel.

Gates are those of the papers' own code; what else is theirs where the config says `faithful`, the README says.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.gated_linear.config import GatedLinearConfig, check
from lattice_jax.memories.gated_linear.op import MatrixState, empty_state, gated_linear
from lattice_jax.memories.matrix import MatrixMemory, Result
from lattice_jax.memories.recurrent import l2_normalize
from lattice_jax.modules import parameter
from lattice_jax.ops.decay.split import split_matrix_op
from lattice_jax.types import Segment

_GLA_DIVISOR = 16  # logits of decays are divided by it, which keeps decays near one at the start


class _GatedLinear(MatrixMemory):
  """What the three have in common."""

  config: GatedLinearConfig

  def check(self) -> None:
    check(self.published, self.config)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    if self.config.features == "unit":
      return super().feature(name, x_BTHK)
    if self.config.features == "silu":
      x_BTHK = nn.silu(x_BTHK)
    elif self.config.features == "elu" and name != "value":
      x_BTHK = nn.elu(x_BTHK) + 1
    is_unit = name == "value" and self.has_unit_values
    return l2_normalize(x_BTHK, eps=self.unit_eps) if is_unit else x_BTHK

  def add(self, q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment: Segment) -> Result:
    """Decays the memory, then adds to it."""
    op = functools.partial(gated_linear, chunk_len=self.config.chunk_len, impl=self.impl)
    tokens = q_BTHK, k_BTHK, v_BTHV, decay_BTHK
    return split_matrix_op(
      op, tokens, state, segment.ids_BT, segment.valid_BT, only_decays=True, start=self.start())


class LinearAttention(_GatedLinear):
  """Keys and values are summed, and nothing decays. Where faithful, outputs are weighted means of the values."""

  published = "linear"

  def empty(self, batch: int) -> MatrixState:
    if not self.config.faithful:
      return super().empty(batch)
    return empty_state(batch, self.config.heads, self.key_dim, self.config.value_dim + 1, dtype=self.state_dtype)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    if not self.config.faithful:
      return self.add(q_BTHK, k_BTHK, v_BTHV, None, state, segment)
    # one value more, a one, whose sum of scores is what the others are divided by
    v_BTHV = jnp.concatenate([v_BTHV, jnp.ones_like(v_BTHV[..., :1])], -1)
    out_BTHV, state, metrics = self.add(q_BTHK, k_BTHK, v_BTHV, None, state, segment)
    return out_BTHV[..., :-1] / (out_BTHV[..., -1:] + self.config.norm_eps), state, metrics

  def finish(self, x_BTD: jax.Array, out_BTHV: jax.Array) -> jax.Array:
    return out_BTHV.astype(x_BTD.dtype) if self.config.faithful else super().finish(x_BTD, out_BTHV)


class ScalarDecay(_GatedLinear):
  """Mamba-2: one decay a token and head, which also says how much is written, and values on a short cut.

  Where faithful, its B and C, our keys and queries, are those of all heads, and the norm comes after the gate.
  """

  published = "scalar_decay"

  @property
  def key_heads(self) -> int:
    return 1 if self.config.faithful else self.config.heads

  @property
  def has_tap_bias(self) -> bool:
    return self.config.faithful

  @property
  def rate_range(self) -> tuple[float, float]:
    return (0.0, 16.0) if self.config.faithful else super().rate_range

  def finish(self, x_BTD: jax.Array, out_BTHV: jax.Array) -> jax.Array:
    if not self.config.faithful:
      return super().finish(x_BTD, out_BTHV)
    return self.norm_all_heads(out_BTHV * self.output_gate(x_BTD)).astype(x_BTD.dtype)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    decay_BTH1, width_BTH1 = self.head_decay(x_BTD)
    out_BTHV, state, metrics = self.add(q_BTHK, width_BTH1 * k_BTHK, v_BTHV, decay_BTH1, state, segment)
    skip_H = parameter(self, "skip", nn.initializers.ones, (self.config.heads,), ("heads",))
    return out_BTHV + skip_H[:, None] * v_BTHV, state, metrics


class GLA(_GatedLinear):
  """One decay a key channel, from a projection of low rank."""

  published = "gla"

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    x_BTHK = super().feature(name, x_BTHK)
    return self.key_dim**-0.5 * x_BTHK if self.config.faithful and name == "query" else x_BTHK

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    logit_BTHK = self.low_rank_logit("decay", x_BTD, self.config.gate_rank, self.config.key_dim, "key")
    decay_BTHK = jnp.exp(jax.nn.log_sigmoid(logit_BTHK) / _GLA_DIVISOR)
    return self.add(q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment)
