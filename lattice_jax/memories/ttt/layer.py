"""TTT-Linear as a memory layer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.memories.ttt.config import TTTConfig, check
from lattice_jax.memories.ttt.op import Learner, TTTState, empty_state, ttt
from lattice_jax.modules import offset, parameter
from lattice_jax.ops.rotary import rotate

_START = 0.02  # spread of the inner model's weights
_ROPE_THETA = 10_000.0


class TTTLinear(RecurrentMemory):
  """The memory is a linear model with a norm that learns to give v for k; q and k turn with the place in a mini-batch.

  q and k keep their lengths, about the square root of their width, which is why steps are divided by the width.
  """

  config: TTTConfig

  @property
  def key_dim(self) -> int:
    return self.config.value_dim

  def check(self) -> None:
    check(self.config)

  def empty(self, batch: int) -> TTTState:
    return empty_state(batch, self.config.heads, self.config.value_dim)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return x_BTHK

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    config = self.config
    place_BT = segment.positions_BT % config.mini_batch
    q_BTHK, k_BTHK = (rotate(x, place_BT, theta=_ROPE_THETA) for x in (q_BTHK, k_BTHK))
    step_BTH = config.inner_rate / config.value_dim * jax.nn.sigmoid(self.head_logit("step", x_BTD))
    out_BTHV, state = ttt(
      q_BTHK, k_BTHK, v_BTHV, step_BTH, self._learner(), state, segment.ids_BT, segment.valid_BT,
      impl=self.impl)
    return out_BTHV, state, {}

  def _learner(self) -> Learner:
    heads, dim = self.config.heads, self.config.value_dim
    axes = ("heads", "value")
    # A factor where the paper's code adds and cuts at zero, where a rate that came there would stay.
    factor_C = jnp.exp(offset(self, "place_rate", (self.config.mini_batch,), ("place",)))
    return Learner(
      weight_HKV=parameter(
        self, "inner_start", nn.initializers.normal(_START), (heads, dim, dim), ("heads", "key", "value")),
      bias_HV=offset(self, "inner_bias", (heads, dim), axes),
      scale_HV=parameter(self, "inner_scale", nn.initializers.ones, (heads, dim), axes),
      shift_HV=offset(self, "inner_shift", (heads, dim), axes),
      rate_C=factor_C / jnp.arange(1, self.config.mini_batch + 1))
