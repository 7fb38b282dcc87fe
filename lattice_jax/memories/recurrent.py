"""The frame of all recurrent memories: everything around the recurrence, which each of them brings.

Projections to q, k and v, short convolution, SiLU, q and k of length one, the recurrence, norm of each head's output,
gate, projection back. A memory is a subclass that says what its config is, what its empty state is, and what it
does with q, k and v:

    class Delta(RecurrentMemory):
      config: DeltaConfig                              # a RecurrentConfig

      def empty(self, batch):
        return empty_state(batch, self.config.heads, self.key_dim, self.config.value_dim)

      def recur(self, x_BTD, q, k, v, state, segment):
        step_BTH = jax.nn.sigmoid(self.head_logit("step", x_BTD))
        out_BTHV, state = delta(q, k, v, step_BTH, state, segment.ids_BT, segment.valid_BT, impl=self.impl)
        return out_BTHV, state, {}

`feature`, `unit_eps`, `output_gate` and `key_dim` may be replaced as well. The state of the op has a field
`document_B`, which the convolution uses too: int32, `EMPTY` before the first token and `document_after` each call.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.memories.entry import enter_layer
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.modules import join_heads, parameter, rms_normalize, split_heads, weight
from lattice_jax.ops.documents import document_runs
from lattice_jax.ops.short_conv import short_conv
from lattice_jax.types import LayerOutput, Segment, SumCount

_WIDTH_RANGE, _RATE_RANGE = (1e-3, 1e-1), (1.0, 16.0)  # of Mamba-2's Δ and A at the start


@flax.struct.dataclass
class ConvTail:
  """The last W − 1 inputs of the convolutions over q, k and v, of the document of the state."""

  q_BWHK: jax.Array
  k_BWHK: jax.Array
  v_BWHV: jax.Array


@flax.struct.dataclass
class RecurrentState:
  """tail: None without convolution. memory: state of the op; its `document_B` is also that of the tail."""

  tail: ConvTail | None
  memory: Any


class RecurrentMemory(nn.Module):
  """A memory layer around a recurrence; the file's docstring says what a subclass brings."""

  config: RecurrentConfig
  dtype: str = "float32"
  impl: str = "auto"

  @property
  def key_dim(self) -> int:
    """Width of a head's queries and keys."""
    return self.config.key_dim

  @property
  def unit_eps(self) -> float:
    """What is added to the squared lengths of q and k. With 1e-4 no gradient grows above 100-fold."""
    return 1e-4

  def check(self) -> None:
    """Raises ValueError where fields of the config contradict one another."""

  def empty(self, batch: int) -> Any:
    """State of the op that has seen nothing; needs no parameters."""
    raise self._lacks("empty")

  def recur(
    self, x_BTD: jax.Array, q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, state: Any, segment: Segment
  ) -> tuple[jax.Array, Any, dict[str, SumCount]]:
    """Output [B, T, H, V], state after the call, metrics. x: input of the layer, from which gates are made."""
    raise self._lacks("recur")

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    """What becomes of "query", "key" or "value" after the convolution, in fp32; it may not make parameters."""
    x_BTHK = nn.silu(x_BTHK)
    return x_BTHK if name == "value" else l2_normalize(x_BTHK, eps=self.unit_eps)

  def output_gate(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, H, V] in the dtype of x, by which normed outputs are multiplied where the config says `gated`."""
    return nn.silu(self.project("gate", x_BTD, self.config.value_dim, "value"))

  def init_state(self, batch: int, max_len: int = 0) -> RecurrentState:
    """Nothing read; the size does not depend on `max_len`."""
    del max_len
    config, dtype = self.config, jnp.dtype(self.dtype)
    if not config.conv_width:
      return RecurrentState(None, self.empty(batch))

    def no_inputs(width):
      return jnp.zeros((batch, config.conv_width - 1, config.heads, width), dtype)

    tail = ConvTail(no_inputs(self.key_dim), no_inputs(self.key_dim), no_inputs(config.value_dim))
    return RecurrentState(tail, self.empty(batch))

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: RecurrentState | None = None, segment: Segment | None = None, *, train: bool = False,
  ) -> LayerOutput:
    """See `types.LayerOutput`; no losses or statistics."""
    del train
    state, segment = enter_layer(self, x_BTD, state, segment)
    self.check()
    config, dtype, dim = self.config, jnp.dtype(self.dtype), x_BTD.shape[-1]
    x_BTD = jnp.where(segment.valid_BT[..., None], x_BTD, 0).astype(dtype)
    run_BT = document_runs(segment.ids_BT, segment.valid_BT, state.memory.document_B)
    old = state.tail or ConvTail(None, None, None)
    q_BTHK, q_tail = self._input("query", x_BTD, old.q_BWHK, run_BT, self.key_dim, "key")
    k_BTHK, k_tail = self._input("key", x_BTD, old.k_BWHK, run_BT, self.key_dim, "key")
    v_BTHV, v_tail = self._input("value", x_BTD, old.v_BWHV, run_BT, config.value_dim, "value")
    out_BTHV, memory, metrics = self.recur(x_BTD, q_BTHK, k_BTHK, v_BTHV, state.memory, segment)

    gain_V = parameter(self, "gain", nn.initializers.ones, (config.value_dim,), ("value",))
    out_BTHV = (rms_normalize(out_BTHV, eps=config.norm_eps) * gain_V).astype(dtype)
    if config.gated:
      out_BTHV *= self.output_gate(x_BTD)
    tail = state.tail and ConvTail(q_tail, k_tail, v_tail)
    return LayerOutput(
      y_BTD=join_heads(self, out_BTHV, dim), state=RecurrentState(tail, memory), losses={}, metrics=metrics,
      statistics={})

  def project(self, name: str, x_BTD: jax.Array, width: int, axis: str) -> jax.Array:
    """[B, T, H, width] in the dtype of x. axis: logical axis of the width, "key" or "value"."""
    return split_heads(self, name, x_BTD, self.config.heads, width, ("heads", axis))

  def head_logit(self, name: str, x_BTD: jax.Array, *, start: float | nn.initializers.Initializer = 0.0) -> jax.Array:
    """[B, T, H] in fp32, a number for each token and head to make a gate from. start: of its bias."""
    dim, heads = x_BTD.shape[-1], self.config.heads
    w_DH = weight(self, name, (dim, heads), ("embed", "heads"), fan_in=dim)
    init = start if callable(start) else nn.initializers.constant(start)
    bias_H = parameter(self, f"{name}_bias", init, (heads,), ("heads",))
    return jnp.einsum("BTD,DH->BTH", x_BTD, w_DH.astype(x_BTD.dtype), preferred_element_type=jnp.float32) + bias_H

  def low_rank_logit(
    self, name: str, x_BTD: jax.Array, rank: int, width: int, axis: str, *,
    start: nn.initializers.Initializer = nn.initializers.zeros,
  ) -> jax.Array:
    """[B, T, H, width] in fp32 by way of `rank` numbers a token, as `head_logit`. axis: "key" or "value"."""
    dim, heads = x_BTD.shape[-1], self.config.heads
    down_DR = weight(self, f"{name}_down", (dim, rank), ("embed", "rank"), fan_in=dim)
    up_RHK = weight(self, f"{name}_up", (rank, heads, width), ("rank", "heads", axis), fan_in=rank)
    bias_HK = parameter(self, f"{name}_bias", start, (heads, width), ("heads", axis))
    low_BTR = jnp.einsum("BTD,DR->BTR", x_BTD, down_DR.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return jnp.einsum("BTR,RHK->BTHK", low_BTR, up_RHK) + bias_HK

  def head_decay(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decays exp(−A Δ) and Δ, both [B, T, H, 1]: Δ from the token, A of the head."""
    width_BTH1 = jax.nn.softplus(self.head_logit("width", x_BTD, start=width_bias))[..., None]
    return self.decay_over(width_BTH1), width_BTH1

  def decay_over(self, width_BTHK: jax.Array) -> jax.Array:
    """exp(−A Δ) for Δ of any last axis; A of the head."""
    log_rate_H = parameter(self, "log_rate", _log_rate, (self.config.heads,), ("heads",))
    return jnp.exp(-jnp.exp(log_rate_H)[:, None] * width_BTHK)

  def _lacks(self, name: str) -> TypeError:
    return TypeError(
      f"the recurrent memory {type(self).__name__} must define `{name}`; lattice_jax/memories/recurrent.py shows what "
      "a memory brings.")

  def _input(self, name, x_BTD, tail_BWHK, run_BT, width, axis):
    """q, k or v in the dtype of x, and the tail of its convolution."""
    x_BTHK = self.project(name, x_BTD, width, axis)
    if tail_BWHK is None:
      return self.feature(name, x_BTHK.astype(jnp.float32)).astype(x_BTD.dtype), None
    taps = self.config.conv_width
    tap_WHK = weight(self, f"{name}_taps", (taps, self.config.heads, width), ("taps", "heads", axis), fan_in=taps)

    # Elementwise work on what the projection gave: the backward pass repeats it and does not keep its steps.
    @jax.checkpoint
    def convolve(x_BTHK, tap_WHK, tail_BWHK):
      y_BTHK, tail_BWHK = short_conv(x_BTHK, tap_WHK, tail_BWHK, run_BT)
      return self.feature(name, y_BTHK).astype(x_BTHK.dtype), tail_BWHK

    return convolve(x_BTHK, tap_WHK, tail_BWHK)


def width_bias(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  """Biases whose softplus is log-uniform."""
  low, high = jnp.log(jnp.array(_WIDTH_RANGE))
  return jnp.log(jnp.expm1(jnp.exp(jax.random.uniform(key, shape, dtype, low, high))))


def _log_rate(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  return jnp.log(jax.random.uniform(key, shape, dtype, *_RATE_RANGE))


def l2_normalize(x: jax.Array, *, eps: float) -> jax.Array:
  """x / length over the last axis. What is shorter than √eps stays short."""
  return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + eps)
