"""The GRU with diagonal recurrence as a memory layer; the frame's query, key and value are its three inputs."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.gru.config import GRUConfig
from lattice_jax.memories.gru.op import GRUState, GRUWeights, empty_state, gru_solved
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.modules import offset, parameter
from lattice_jax.ops.parallel_recurrence import RecurrenceForm, Solved
from lattice_jax.ops.sequence import relay_call
from lattice_jax.types import SumCount

_SPREAD = 0.5  # of a unit's factors on itself at the start; below one a unit forgets where it came from
_SLOWEST, _QUICKEST = -4.0, 0.0  # logits of update gates at the start: units live for two to fifty tokens


class GRU(RecurrentMemory):
  """Units that see themselves and the token. Projections "query", "key" and "value": update, reset and candidate."""

  config: GRUConfig

  @property
  def key_dim(self) -> int:
    return self.config.value_dim

  def empty(self, batch: int) -> GRUState:
    return empty_state(batch, self.config.heads, self.config.value_dim, dtype=self.state_dtype)

  def feature(self, name: str, x_BTHK: jax.Array) -> jax.Array:
    return x_BTHK

  def recur(self, x_BTD, q_BTHK, k_BTHK, v_BTHV, state, segment):
    shape = self.config.heads, self.config.value_dim
    own = GRUWeights(*(
      parameter(self, f"own_{name}", nn.initializers.normal(_SPREAD), shape, ("heads", "value"))
      for name in ("update", "reset", "candidate")))
    update_HV = parameter(self, "update_bias", _update_bias, shape, ("heads", "value"))
    reset_HV, candidate_HV = (
      offset(self, f"{name}_bias", shape, ("heads", "value")) for name in ("reset", "candidate"))
    inputs = (x.astype(self.state_dtype) + bias_HV for x, bias_HV in (
      (q_BTHK, update_HV), (k_BTHK, reset_HV), (v_BTHV, candidate_HV)))

    def measured(*arrays):
      out_BTHV, state, solved = gru_solved(*arrays, form=_form(self.config), impl=self.impl)
      return out_BTHV, state, measure_rounds(solved)

    return relay_call(measured, tuple(inputs), state, segment.ids_BT, segment.valid_BT, (own,))


def _form(config: GRUConfig) -> RecurrenceForm:
  return RecurrenceForm(config.form, "diagonal", config.chunk_len, config.rounds, config.tolerance)


def measure_rounds(solved: Solved | None) -> dict[str, SumCount]:
  """Means over chunks; none of the reference.

  rounds: that a chunk took. rounds_residual: how far its states were from the step's own. rounds_scanned: the share of
  chunks that rounds did not solve, which were then taken token by token.
  """
  if solved is None:
    return {}
  chunks = jnp.float32(solved.rounds_N.shape[0])
  named = {"rounds": solved.rounds_N, "rounds_residual": solved.residual_N, "rounds_scanned": solved.is_scanned_N}
  return {name: (jax.lax.stop_gradient(array_N).astype(jnp.float32).sum(), chunks) for name, array_N in named.items()}


def _update_bias(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
  return jax.random.uniform(key, shape, dtype, _SLOWEST, _QUICKEST)
