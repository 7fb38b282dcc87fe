"""TTT-Linear as a memory layer."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.recurrent import ConvTail, RecurrentMemory
from lattice_jax.memories.ttt.config import TTTConfig, check
from lattice_jax.memories.ttt.op import Learner, TTTState, empty_state, ttt
from lattice_jax.memories.ttt.rule import layer_norm
from lattice_jax.modules import offset, parameter
from lattice_jax.ops.rotary import rotate
from lattice_jax.ops.sequence import relay_call

_START = 0.02  # spread of the inner model's weights
_ROPE_THETA = 10_000.0


class TTTLinear(RecurrentMemory):
  """The memory is a linear model with a norm that learns to give v for k; q and k turn with the place in a mini-batch.

  q and k keep their lengths, about the square root of their width, which is why steps are divided by the width.
  Where faithful, q and k are two convolutions of one projection.
  """

  config: TTTConfig

  @property
  def key_dim(self) -> int:
    return self.config.value_dim

  @property
  def has_tap_bias(self) -> bool:
    return self.config.faithful

  def check(self) -> None:
    check(self.config)

  def empty(self, batch: int) -> TTTState:
    return empty_state(batch, self.config.heads, self.config.value_dim, dtype=self.state_dtype)

  def no_inputs(self, batch: int) -> ConvTail:
    tail = super().no_inputs(batch)
    return ConvTail(tail.q_BWHK, None, None) if self.config.faithful else tail

  def inputs(self, x_BTD, tail, run_BT):
    if not self.config.faithful:
      return super().inputs(x_BTD, tail, run_BT)
    shared_BTHK = self.project("query", x_BTD, self.key_dim, "key")
    q_BTHK, tail_BWHK = self.convolve("query", shared_BTHK, tail.q_BWHK, run_BT, "key")
    k_BTHK, _ = self.convolve("key", shared_BTHK, tail.q_BWHK, run_BT, "key")
    v_BTHV = self.project("value", x_BTD, self.config.value_dim, "value")
    return q_BTHK, k_BTHK, v_BTHV, ConvTail(tail_BWHK, None, None)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return x_BTHK

  def output_gate(self, x_BTD: jax.Array) -> jax.Array:
    if not self.config.faithful:
      return super().output_gate(x_BTD)
    return nn.gelu(self.project("gate", x_BTD, self.config.value_dim, "value"))

  def finish(self, x_BTD: jax.Array, out_BTHV: jax.Array) -> jax.Array:
    if not self.config.faithful:
      return super().finish(x_BTD, out_BTHV)
    shape = out_BTHV.shape[2:]
    gain_HV = parameter(self, "gain", nn.initializers.ones, shape, ("heads", "value"))
    shift_HV = offset(self, "norm_bias", shape, ("heads", "value"))
    out_BTO = out_BTHV.reshape(*out_BTHV.shape[:2], -1)
    out_BTO = layer_norm(out_BTO, gain_HV.reshape(-1), shift_HV.reshape(-1), self.config.norm_eps)
    return out_BTO.reshape(out_BTHV.shape).astype(x_BTD.dtype) * self.output_gate(x_BTD)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    config = self.config
    place_BT = segment.positions_BT % config.mini_batch
    q_BTHK, k_BTHK = (rotate(x, place_BT, theta=_ROPE_THETA) for x in (q_BTHK, k_BTHK))
    step_BTH = config.inner_rate / config.value_dim * jax.nn.sigmoid(self.head_logit("step", x_BTD))
    return relay_call(
      functools.partial(ttt, impl=self.impl), (q_BTHK, k_BTHK, v_BTHV, step_BTH), state, segment.ids_BT,
      segment.valid_BT, (self._learner(),))

  def _learner(self) -> Learner:
    heads, dim = self.config.heads, self.config.value_dim
    axes = ("heads", "value")
    place_rate_C = offset(self, "place_rate", (self.config.mini_batch,), ("place",))
    count_C = jnp.arange(1, self.config.mini_batch + 1)
    if self.config.faithful:
      rate_C = jnp.maximum(1 / count_C + place_rate_C, 0)
    else:
      # A factor where the paper's code adds and cuts at zero, where a rate that came there would stay.
      rate_C = jnp.exp(place_rate_C) / count_C
    return Learner(
      weight_HKV=parameter(
        self, "inner_start", nn.initializers.normal(_START), (heads, dim, dim), ("heads", "key", "value")),
      bias_HV=offset(self, "inner_bias", (heads, dim), axes),
      scale_HV=parameter(self, "inner_scale", nn.initializers.ones, (heads, dim), axes),
      shift_HV=offset(self, "inner_shift", (heads, dim), axes),
      rate_C=rate_C)
