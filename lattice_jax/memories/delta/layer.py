"""The delta rule as a memory layer: DeltaNet; Gated DeltaNet and Kimi delta attention, where the memory decays.

Gates are those of the papers' own code; what else is theirs where the config says `faithful`, the README says.
"""

from __future__ import annotations

import functools

import jax

from lattice_jax.memories.delta.config import DeltaConfig, check
from lattice_jax.memories.delta.op import delta
from lattice_jax.memories.matrix import MatrixMemory, Result
from lattice_jax.memories.recurrent import width_bias
from lattice_jax.ops.decay.split import split_matrix_op
from lattice_jax.types import Segment


class DeltaNet(MatrixMemory):
  """The value of a key is corrected, not added to."""

  config: DeltaConfig
  published = "deltanet"

  def check(self) -> None:
    check(self.published, self.config)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    x_BTHK = super().feature(name, x_BTHK)
    return self.key_dim**-0.5 * x_BTHK if self.config.faithful and name == "query" else x_BTHK

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    return self.correct(x_BTD, q_BTHK, k_BTHK, v_BTHV, None, state, segment)

  def correct(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment: Segment) -> Result:
    """Decays the memory, then moves what it gives for k towards v."""
    logit_BTH = self.head_logit("step", x_BTD, has_bias=not self.config.faithful)
    step_BTH = self.config.max_step * jax.nn.sigmoid(logit_BTH)
    op = functools.partial(delta, chunk_len=self.config.chunk_len, impl=self.impl)
    tokens = q_BTHK, k_BTHK, v_BTHV, step_BTH, decay_BTHK
    return split_matrix_op(op, tokens, state, segment.ids_BT, segment.valid_BT, start=self.start())


class GatedDeltaNet(DeltaNet):
  """DeltaNet on a memory that decays by one factor a token and head."""

  published = "gated_deltanet"

  @property
  def rate_range(self) -> tuple[float, float]:
    return (0.0, 16.0) if self.config.faithful else super().rate_range

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    decay_BTH1, _ = self.head_decay(x_BTD)
    return self.correct(x_BTD, q_BTHK, k_BTHK, v_BTHV, decay_BTH1, state, segment)


class KimiDelta(DeltaNet):
  """DeltaNet on a memory that decays by one factor a key channel; this and the output's gate are made by low rank."""

  published = "kimi_delta"

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    logit_BTHK = self.low_rank_logit("decay", x_BTD, self.config.rank, self.key_dim, "key", start=width_bias)
    decay_BTHK = self.decay_over(jax.nn.softplus(logit_BTHK))
    return self.correct(x_BTD, q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment)

  def output_gate(self, x_BTD: jax.Array) -> jax.Array:
    logit_BTHV = self.low_rank_logit("gate", x_BTD, self.config.rank, self.config.value_dim, "value")
    return jax.nn.sigmoid(logit_BTHV).astype(x_BTD.dtype)
