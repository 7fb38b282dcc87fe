"""Online vector-quantised attention as a memory layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lattice_jax.memories.online_vq.config import OnlineVQConfig
from lattice_jax.memories.online_vq.op import OnlineVQState, empty_state, online_vq
from lattice_jax.memories.recurrent import RecurrentMemory, l2_normalize
from lattice_jax.modules import offset
from lattice_jax.ops.sequence import relay_call


class OnlineVQ(RecurrentMemory):
  """A softmax over a dictionary of mean keys and values; q and k have length one, and a head learns its sharpness."""

  config: OnlineVQConfig

  def empty(self, batch: int) -> OnlineVQState:
    config = self.config
    return empty_state(
      batch, config.heads, config.codes, config.chunk_len, config.key_dim, config.value_dim,
      token_dtype=jnp.dtype(self.dtype), dtype=self.state_dtype)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return x_BTHK if name == "value" else l2_normalize(x_BTHK, eps=self.unit_eps)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    config = self.config
    # β of the paper, which is a precision, so positive; √K at the start makes scores those of attention
    sharpness_H = jnp.exp(offset(self, "log_sharpness", (config.heads,), ("heads",))) * config.key_dim**0.5
    op = functools.partial(
      online_vq, codes=config.codes, chunk_len=config.chunk_len, growth=config.growth, impl=self.impl)
    tokens = q_BTHK * sharpness_H[:, None], k_BTHK, v_BTHV
    return relay_call(op, tokens, state, segment.ids_BT, segment.valid_BT)
