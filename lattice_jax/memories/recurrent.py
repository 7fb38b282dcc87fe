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

What else a class may replace stands with its defaults below: published layers, which a config asks for by `faithful`,
replace what they have otherwise. The state of the op has a field `document_B`, which the convolution uses too: int32,
`EMPTY` before the first token and `document_after` each call.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.memories.entry import enter_layer
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.modules import join_heads, offset, parameter, rms_normalize, split_heads, weight, wide
from lattice_jax.ops.documents import EMPTY, document_after, document_runs
from lattice_jax.ops.products import scaled
from lattice_jax.ops.sequence import with_halo
from lattice_jax.ops.short_conv import short_conv
from lattice_jax.types import LayerOutput, Segment, SumCount

_WIDTH_RANGE = 1e-3, 1e-1  # of Mamba-2's Δ at the start


@flax.struct.dataclass
class ConvTail:
  """The last W − 1 inputs of the convolutions over q, k and v, of the document of the state.

  k is None where its inputs are those of q, v where it has no convolution.
  """

  q_BWHK: jax.Array
  k_BWHK: jax.Array | None
  v_BWHV: jax.Array | None


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
  def key_heads(self) -> int:
    """Heads of queries and keys: one for each head of values, or one for all."""
    return self.config.heads

  @property
  def unit_eps(self) -> float:
    """What is added to the squared lengths of q and k. With 1e-4 no gradient grows above 100-fold."""
    return 1e-4

  @property
  def has_unit_values(self) -> bool:
    """Whether v has length one too."""
    return False

  @property
  def has_tap_bias(self) -> bool:
    """Whether convolutions add a bias."""
    return False

  @property
  def rate_range(self) -> tuple[float, float]:
    """Of A at the start, in `decay_over`."""
    return 1.0, 16.0

  @property
  def state_dtype(self) -> jnp.dtype:
    """Of what the state of the op sums over time."""
    return wide(self.dtype)

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
    """What becomes of "query", "key" or "value" after the convolution, in fp32 at least; makes no parameters."""
    x_BTHK = nn.silu(x_BTHK)
    is_unit = name != "value" or self.has_unit_values
    return l2_normalize(x_BTHK, eps=self.unit_eps) if is_unit else x_BTHK

  def output_gate(self, x_BTD: jax.Array) -> jax.Array:
    """[B, T, H, V] in the dtype of x, by which normed outputs are multiplied where the config says `gated`."""
    return nn.silu(self.project("gate", x_BTD, self.config.value_dim, "value"))

  def finish(self, x_BTD: jax.Array, out_BTHV: jax.Array) -> jax.Array:
    """[B, T, H, V] in the dtype of x: what of the outputs of `recur` is projected back."""
    gain_V = parameter(self, "gain", nn.initializers.ones, (self.config.value_dim,), ("value",))
    out_BTHV = (rms_normalize(out_BTHV, eps=self.config.norm_eps) * gain_V).astype(x_BTD.dtype)
    return out_BTHV * self.output_gate(x_BTD) if self.config.gated else out_BTHV

  def no_inputs(self, batch: int) -> ConvTail:
    """Of a document that has not begun."""
    # an array each: a state in which two are one cannot be donated
    keys, values = (self.key_heads, self.key_dim), (self.config.heads, self.config.value_dim)
    return ConvTail(*(
      jnp.zeros((batch, self.config.conv_width - 1, *shape), self.dtype) for shape in (keys, keys, values)))

  def inputs(
    self, x_BTD: jax.Array, tail: ConvTail | None, run_BT: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array, ConvTail | None]:
    """q and k [B, T, key_heads, K] and v [B, T, H, V] in the dtype of x, and the tail after the call."""
    old = tail or ConvTail(None, None, None)

    def make(name, heads, width, axis, tail_BWHK):
      x_BTHK = split_heads(self, name, x_BTD, heads, width, ("heads", axis))
      return self.convolve(name, x_BTHK, tail_BWHK, run_BT, axis)

    q_BTHK, q_tail = make("query", self.key_heads, self.key_dim, "key", old.q_BWHK)
    k_BTHK, k_tail = make("key", self.key_heads, self.key_dim, "key", old.k_BWHK)
    v_BTHV, v_tail = make("value", self.config.heads, self.config.value_dim, "value", old.v_BWHV)
    return q_BTHK, k_BTHK, v_BTHV, tail and ConvTail(q_tail, k_tail, v_tail)

  def init_state(self, batch: int, max_len: int = 0) -> RecurrentState:
    """Nothing read; the size does not depend on `max_len`."""
    del max_len
    return RecurrentState(self.no_inputs(batch) if self.config.conv_width else None, self.empty(batch))

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, state: RecurrentState | None = None, segment: Segment | None = None, *, train: bool = False,
  ) -> LayerOutput:
    """See `types.LayerOutput`; no losses or statistics."""
    del train
    state, segment = enter_layer(self, x_BTD, state, segment)
    self.check()
    x_BTD = jnp.where(segment.valid_BT[..., None], x_BTD, 0).astype(self.dtype)
    run_BT = _runs(segment, state.memory.document_B)
    q_BTHK, k_BTHK, v_BTHV, tail = self.inputs(x_BTD, state.tail, run_BT)
    if self.key_heads != self.config.heads:
      q_BTHK, k_BTHK = (jnp.broadcast_to(x, (*x.shape[:2], self.config.heads, x.shape[3])) for x in (q_BTHK, k_BTHK))
    out_BTHV, memory, metrics = self.recur(x_BTD, q_BTHK, k_BTHK, v_BTHV, state.memory, segment)
    y_BTD = join_heads(self, self.finish(x_BTD, out_BTHV), x_BTD.shape[-1])
    return LayerOutput(y_BTD=y_BTD, state=RecurrentState(tail, memory), losses={}, metrics=metrics, statistics={})

  def convolve(
    self, name: str, x_BTHK: jax.Array, tail_BWHK: jax.Array | None, run_BT: jax.Array, axis: str
  ) -> tuple[jax.Array, jax.Array | None]:
    """q, k or v of its projection, and the tail of its convolution; None = no convolution."""
    if tail_BWHK is None:
      return self.feature(name, x_BTHK.astype(wide(x_BTHK.dtype))).astype(x_BTHK.dtype), None
    taps, shape, axes = self.config.conv_width, x_BTHK.shape[2:], ("heads", axis)
    tap_WHK = weight(self, f"{name}_taps", (taps, *shape), ("taps", *axes), fan_in=taps)
    bias_HK = offset(self, f"{name}_taps_bias", shape, axes) if self.has_tap_bias else None

    # Elementwise work on what the projection gave: the backward pass repeats it and does not keep its steps.
    @jax.checkpoint
    def run(x_BTHK, tap_WHK, bias_HK, run_BT, tail_BWHK):
      y_BTHK, tail_BWHK = short_conv(x_BTHK, tap_WHK, tail_BWHK, run_BT)
      y_BTHK = y_BTHK if bias_HK is None else y_BTHK + bias_HK
      return self.feature(name, y_BTHK).astype(x_BTHK.dtype), tail_BWHK

    def op(constants, tokens, tail_BWHK):
      x_BTHK, run_BT = tokens
      return *run(x_BTHK, *constants, run_BT, tail_BWHK), ()

    y_BTHK, tail_BWHK, _ = with_halo(
      op, (tap_WHK, bias_HK), (x_BTHK, run_BT), run_BT != EMPTY, tail_BWHK, reach=taps - 1, name="a convolution")
    return y_BTHK, tail_BWHK

  def project(self, name: str, x_BTD: jax.Array, width: int, axis: str) -> jax.Array:
    """[B, T, H, width] in the dtype of x. axis: logical axis of the width, "key" or "value"."""
    return split_heads(self, name, x_BTD, self.config.heads, width, ("heads", axis))

  def norm_all_heads(self, out_BTHV: jax.Array) -> jax.Array:
    """Divided by the root mean square over all heads at once, with a gain for every channel, in fp32 at least."""
    shape = out_BTHV.shape[2:]
    gain_HV = parameter(self, "gain", nn.initializers.ones, shape, ("heads", "value"))
    out_BTO = rms_normalize(out_BTHV.reshape(*out_BTHV.shape[:2], -1), eps=self.config.norm_eps)
    return out_BTO.reshape(out_BTHV.shape) * gain_HV

  def head_logit(
    self, name: str, x_BTD: jax.Array, *, start: float | nn.initializers.Initializer = 0.0, has_bias: bool = True,
  ) -> jax.Array:
    """[B, T, H] in fp32 at least, a number for each token and head to make a gate from. start: of its bias."""
    dim, heads, dtype = x_BTD.shape[-1], self.config.heads, x_BTD.dtype
    w_DH = weight(self, name, (dim, heads), ("embed", "heads"), fan_in=dim)
    logit_BTH = jnp.einsum("BTD,DH->BTH", x_BTD, w_DH.astype(dtype), preferred_element_type=wide(dtype))
    if not has_bias:
      return logit_BTH
    init = start if callable(start) else nn.initializers.constant(start)
    return logit_BTH + parameter(self, f"{name}_bias", init, (heads,), ("heads",))

  def low_rank_logit(
    self, name: str, x_BTD: jax.Array, rank: int, width: int, axis: str, *,
    start: nn.initializers.Initializer = nn.initializers.zeros,
  ) -> jax.Array:
    """[B, T, H, width] in fp32 at least by way of `rank` numbers a token, as `head_logit`. axis: "key" or "value"."""
    dim, heads, dtype = x_BTD.shape[-1], self.config.heads, x_BTD.dtype
    down_DR = weight(self, f"{name}_down", (dim, rank), ("embed", "rank"), fan_in=dim)
    up_RHK = weight(self, f"{name}_up", (rank, heads, width), ("rank", "heads", axis), fan_in=rank)
    bias_HK = parameter(self, f"{name}_bias", start, (heads, width), ("heads", axis))
    low_BTR = jnp.einsum("BTD,DR->BTR", x_BTD, down_DR.astype(dtype), preferred_element_type=wide(dtype))
    return jnp.einsum("BTR,RHK->BTHK", low_BTR, up_RHK) + bias_HK

  def head_decay(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decays exp(−A Δ) and Δ, both [B, T, H, 1]: Δ from the token, A of the head."""
    width_BTH1 = jax.nn.softplus(self.head_logit("width", x_BTD, start=width_bias))[..., None]
    return self.decay_over(width_BTH1), width_BTH1

  def decay_over(self, width_BTHK: jax.Array) -> jax.Array:
    """exp(−A Δ) for Δ of any last axis; A of the head."""
    log_rate_H = parameter(self, "log_rate", self._log_rate, (self.config.heads,), ("heads",))
    return jnp.exp(-jnp.exp(log_rate_H)[:, None] * width_BTHK)

  def _lacks(self, name: str) -> TypeError:
    return TypeError(
      f"the recurrent memory {type(self).__name__} must define `{name}`; lattice_jax/memories/recurrent.py shows what "
      "a memory brings.")

  def _log_rate(self, key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    low, high = self.rate_range
    # a rate of exactly zero has no logarithm
    return jnp.log(jax.random.uniform(key, shape, dtype, max(low, float(jnp.finfo(dtype).tiny)), high))


def _runs(segment: Segment, document_B: jax.Array) -> jax.Array:
  """`document_runs` of the call; where tokens lie on several devices, each counts from its own first token."""

  def op(constants, tokens, document_B):
    return document_runs(*tokens, document_B), document_after(*tokens, document_B), ()

  tokens = segment.ids_BT, segment.valid_BT
  return with_halo(op, (), tokens, segment.valid_BT, document_B, reach=1, name="a document")[0]


def width_bias(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  """Biases whose softplus is log-uniform."""
  low, high = jnp.log(jnp.array(_WIDTH_RANGE))
  return jnp.log(jnp.expm1(jnp.exp(jax.random.uniform(key, shape, dtype, low, high))))


def l2_normalize(x: jax.Array, *, eps: float) -> jax.Array:
  """x / length over the last axis. What is shorter than √eps stays short."""
  return scaled(x, jax.lax.rsqrt((x * x).sum(-1) + eps))
