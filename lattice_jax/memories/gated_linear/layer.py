"""The recurrences that Lattice is compared with, as memory layers: what each does with q, k and v, and its gates.

Gates are those of the papers' own code; everything around them is the frame's, the same for all.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.config import AttentionConfig, BaselineConfig
from lattice_jax.memories.delta.op import delta
from lattice_jax.memories.gated_linear import op as gated_linear
from lattice_jax.memories.gated_slots import op as gated_slots
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.memories.ttt import op as ttt
from lattice_jax.modules import offset, weight
from lattice_jax.ops.rotary import rotate
from lattice_jax.types import Segment, SumCount

Result = tuple[jax.Array, gated_linear.MatrixState, dict[str, SumCount]]

# Logits of decays are divided by these, which keeps decays near one at the start.
_GLA_DIVISOR, _SLOTS_DIVISOR = 16, 8
_WIDTH_RANGE, _RATE_RANGE = (1e-3, 1e-1), (1.0, 16.0)  # of Mamba-2's Δ and A at the start
_TTT_START = 0.02  # spread of the inner model's weights
_ROPE = AttentionConfig()  # the usual frequencies


class LinearAttention(RecurrentMemory):
  """Keys and values are summed, and nothing decays."""

  @property
  def section(self) -> BaselineConfig:
    return self.config.baseline

  @property
  def key_dim(self) -> int:
    return self.section.key_dim

  def empty(self, batch: int) -> gated_linear.MatrixState:
    return gated_linear.empty_state(batch, self.section.heads, self.key_dim, self.section.value_dim)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    return self.add(q_BTHK, k_BTHK, v_BTHV, None, state, segment)

  def add(self, q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment: Segment) -> Result:
    """Decays the memory, then adds to it."""
    out_BTHV, state = gated_linear.gated_linear(
      q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment.ids_BT, segment.valid_BT, **self.options)
    return out_BTHV, state, {}

  def put_right(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment: Segment) -> Result:
    """Decays the memory, then moves what it gives for k towards v."""
    step_BTH = self.section.max_step * jax.nn.sigmoid(self.head_logit("step", x_BTD))
    out_BTHV, state = delta(
      q_BTHK, k_BTHK, v_BTHV, step_BTH, decay_BTHK, state, segment.ids_BT, segment.valid_BT, **self.options)
    return out_BTHV, state, {}

  def head_decay(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Decays exp(−A Δ) and Δ, both [B, T, H, 1]: Δ from the token, A of the head."""
    width_BTH = jax.nn.softplus(self.head_logit("width", x_BTD, start=_width_bias))
    rate = nn.with_logical_partitioning(_log_rate, ("heads",))
    log_rate_H = self.param("log_rate", rate, (self.section.heads,), jnp.float32)
    return jnp.exp(-jnp.exp(log_rate_H) * width_BTH)[..., None], width_BTH[..., None]

  @property
  def options(self) -> dict:
    """How the op runs."""
    return {"chunk_len": self.section.chunk_len, "impl": self.config.impl}


class ScalarDecay(LinearAttention):
  """Mamba-2: one decay a token and head, which also says how much is written, and values on a short cut."""

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    decay_BTH1, width_BTH1 = self.head_decay(x_BTD)
    out_BTHV, state, metrics = self.add(q_BTHK, width_BTH1 * k_BTHK, v_BTHV, decay_BTH1, state, segment)
    ones = nn.with_logical_partitioning(nn.initializers.ones, ("heads",))
    skip_H = self.param("skip", ones, (self.section.heads,), jnp.float32)
    return out_BTHV + skip_H[:, None] * v_BTHV, state, metrics


class GLA(LinearAttention):
  """One decay a key channel, from a projection of low rank."""

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    dim, section = x_BTD.shape[-1], self.section
    shape = (section.heads, section.key_dim)
    down_DR = weight(self, "decay_down", (dim, section.gate_rank), ("embed", "rank"), fan_in=dim)
    up_RHK = weight(self, "decay_up", (section.gate_rank, *shape), ("rank", "heads", "key"), fan_in=section.gate_rank)
    low_BTR = jnp.einsum("BTD,DR->BTR", x_BTD, down_DR.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    logit_BTHK = jnp.einsum("BTR,RHK->BTHK", low_BTR, up_RHK) + offset(self, "decay_bias", shape, ("heads", "key"))
    decay_BTHK = jnp.exp(jax.nn.log_sigmoid(logit_BTHK) / _GLA_DIVISOR)
    return self.add(q_BTHK, k_BTHK, v_BTHV, decay_BTHK, state, segment)


class DeltaNet(LinearAttention):
  """The value of a key is put right, not added to."""

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    return self.put_right(x_BTD, q_BTHK, k_BTHK, v_BTHV, None, state, segment)


class GatedDeltaNet(LinearAttention):
  """DeltaNet on a memory that decays by one factor a token and head."""

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment) -> Result:
    decay_BTH1, _ = self.head_decay(x_BTD)
    return self.put_right(x_BTD, q_BTHK, k_BTHK, v_BTHV, decay_BTH1, state, segment)


class GatedSlots(LinearAttention):
  """Softmax over slots whose keys and values are moving averages; q and k keep their lengths, which scores need."""

  def empty(self, batch: int) -> gated_slots.SlotState:
    section = self.section
    return gated_slots.empty_state(batch, section.heads, section.slots, section.key_dim, section.value_dim)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return nn.silu(x_BTHK)

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    logit_BTHM = self.project("decay", x_BTD, self.section.slots, "slots").astype(jnp.float32)
    log_decay_BTHM = jax.nn.log_sigmoid(logit_BTHM) / _SLOTS_DIVISOR
    out_BTHV, state = gated_slots.gated_slots(
      q_BTHK, k_BTHK, v_BTHV, -jnp.expm1(log_decay_BTHM), jnp.exp(log_decay_BTHM), state, segment.ids_BT,
      segment.valid_BT, **self.options)
    return out_BTHV, state, {}


class TTTLinear(LinearAttention):
  """The memory is a linear model with a norm that learns to give v for k; q and k turn with the place in a mini-batch.

  q and k keep their lengths, about the square root of their width, which is why steps are divided by the width.
  """

  @property
  def key_dim(self) -> int:
    return self.section.value_dim

  def empty(self, batch: int) -> ttt.TTTState:
    return ttt.empty_state(batch, self.section.heads, self.section.value_dim)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return x_BTHK

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    section = self.section
    place_BT = segment.positions_BT % section.mini_batch
    q_BTHK, k_BTHK = (rotate(x, place_BT, _ROPE) for x in (q_BTHK, k_BTHK))
    step_BTH = section.inner_rate / section.value_dim * jax.nn.sigmoid(self.head_logit("step", x_BTD))
    out_BTHV, state = ttt.ttt(
      q_BTHK, k_BTHK, v_BTHV, step_BTH, self._learner(), state, segment.ids_BT, segment.valid_BT,
      impl=self.config.impl)
    return out_BTHV, state, {}

  def _learner(self) -> ttt.Learner:
    heads, dim = self.section.heads, self.section.value_dim
    axes = ("heads", "value")
    normal = nn.with_logical_partitioning(nn.initializers.normal(_TTT_START), ("heads", "key", "value"))
    ones = nn.with_logical_partitioning(nn.initializers.ones, axes)
    # A factor where the paper's code adds and cuts at zero, where a rate that came there would stay.
    factor_C = jnp.exp(offset(self, "place_rate", (self.section.mini_batch,), ("place",)))
    return ttt.Learner(
      weight_HKV=self.param("inner_start", normal, (heads, dim, dim), jnp.float32),
      bias_HV=offset(self, "inner_bias", (heads, dim), axes),
      scale_HV=self.param("inner_scale", ones, (heads, dim), jnp.float32),
      shift_HV=offset(self, "inner_shift", (heads, dim), axes),
      rate_C=factor_C / jnp.arange(1, self.section.mini_batch + 1))


def _width_bias(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  """Biases whose softplus is log-uniform."""
  low, high = jnp.log(jnp.array(_WIDTH_RANGE))
  return jnp.log(jnp.expm1(jnp.exp(jax.random.uniform(key, shape, dtype, low, high))))


def _log_rate(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  return jnp.log(jax.random.uniform(key, shape, dtype, *_RATE_RANGE))
