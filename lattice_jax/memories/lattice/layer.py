"""Lattice as a memory layer (arXiv 2504.05646): unit slots that learn online, each from what is orthogonal to it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.memories.lattice.config import LatticeConfig, check
from lattice_jax.memories.lattice.op import Form, LatticeState, Rounds, Rule, empty_state, incoming, lattice_with_rounds
from lattice_jax.memories.lattice.sphere import TINY
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.modules import parameter
from lattice_jax.ops.sequence import relay_call
from lattice_jax.types import Segment, SumCount

_FORGET_START = 4.0  # logit at the start: a gate of 0.99


class Lattice(RecurrentMemory):
  """Queries and keys are codes over the slots, so they are as wide as there are slots.

  Parameter `start` [H, M, V]: a document begins with these slots; only their directions count.
  """

  config: LatticeConfig

  @property
  def key_dim(self) -> int:
    return self.config.slots

  @property
  def has_unit_values(self) -> bool:
    return self.config.unit_values

  def check(self) -> None:
    check(self.config)

  def empty(self, batch: int) -> LatticeState:
    config = self.config
    return empty_state(batch, config.heads, config.slots, config.value_dim, rule=_rule(config), form=_form(config))

  def recur(
    self, x_BTD: jax.Array, q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHV: jax.Array, state: LatticeState,
    segment: Segment,
  ) -> tuple[jax.Array, LatticeState, dict[str, SumCount]]:
    config = self.config
    step_BTH = config.max_step * jax.nn.sigmoid(self.head_logit("step", x_BTD))
    forget_BTH = None
    if config.forget:
      # From a half to one: forgetting makes a step at most twice as long, and steps below two are stable; and of a slot
      # that returns enough is left that its start cannot cancel it.
      forget_BTH = 0.5 + 0.5 * jax.nn.sigmoid(self.head_logit("forget", x_BTD, start=_FORGET_START))
    # Random directions of length about one: no two slots are alike, which nothing later would make different.
    start_HMV = parameter(
      self, "start", nn.initializers.normal(config.value_dim**-0.5), (config.heads, config.slots, config.value_dim),
      ("heads", "slots", "value"))
    # Kept only where the collection is asked for, by the audit of the slots.
    self.sow("intermediates", "op_inputs", {
      "k": k_BTHK, "v": v_BTHV, "step": step_BTH, "forget": forget_BTH, "start": start_HMV})

    def measured(*arrays):
      out_BTHV, state, rounds = lattice_with_rounds(*arrays, rule=_rule(config), form=_form(config), impl=self.impl)
      return out_BTHV, state, measure_rounds(rounds)

    out_BTHV, state, metrics = relay_call(
      measured, (q_BTHK, k_BTHK, v_BTHV, step_BTH, forget_BTH), state, segment.ids_BT, segment.valid_BT, (start_HMV,))
    return out_BTHV, state, measure_slots(config, step_BTH, k_BTHK, v_BTHV, state, segment) | metrics


def _rule(config: LatticeConfig) -> Rule:
  return Rule(config.objective, config.state, config.projected)


def _form(config: LatticeConfig) -> Form:
  return Form(config.form, config.chunk_len, config.rounds, config.tolerance)


def measure_slots(
  config: LatticeConfig, step_BTH: jax.Array, k_BTHM: jax.Array, v_BTHV: jax.Array, state: LatticeState,
  segment: Segment,
) -> dict[str, SumCount]:
  """How large steps are, and how the slots stand after the call: means over heads and over rows with tokens.

  slot_rank: number of directions that the slots take, (Σλ)² / Σλ² of their Gram matrix; 1 where all are parallel.
  slot_novelty: the share of the last token's write that lies across the slots, were it to come again.
  slot_norm_error: of the slot furthest from length one; approximate forms let it grow within a chunk.
  """
  has_tokens_B1 = segment.valid_BT.any(1)[:, None]
  unit_BHMV, norm_BHM = state.slots.unit_BHMV, state.slots.norm_BHM
  squared_BHM = (unit_BHMV * unit_BHMV).sum(-1)
  gram_BHMM = jnp.einsum("BHMV,BHNV->BHMN", unit_BHMV, unit_BHMV)
  rank_BH = squared_BHM.sum(-1) ** 2 / jnp.maximum((gram_BHMM**2).sum((-2, -1)), TINY)
  last_B = jnp.maximum(segment.valid_BT.sum(1) - 1, 0)[:, None, None, None]
  k_BHM, v_BHV = (jnp.take_along_axis(x_BT, last_B, 1)[:, 0].astype(jnp.float32) for x_BT in (k_BTHM, v_BTHV))
  h_BHV, code_BHM = incoming(config.objective, unit_BHMV, k_BHM, v_BHV)
  along_BHM = jnp.einsum("BHMV,BHV->BHM", unit_BHMV, h_BHV)
  energy_BH = (code_BHM**2).sum(-1) * (h_BHV**2).sum(-1)
  novel_BH = 1 - (code_BHM**2 * along_BHM**2).sum(-1) / jnp.maximum(energy_BH, TINY)
  metrics = {
    "slot_step": _mean(jnp.moveaxis(step_BTH, 1, 2), segment.valid_BT[:, None]),
    "slot_rank": _mean(rank_BH, has_tokens_B1),
    "slot_novelty": _mean(novel_BH, has_tokens_B1),
    "slot_norm_error": _mean(jnp.abs(jnp.sqrt(squared_BHM) - 1).max(-1), has_tokens_B1),
  }
  return metrics if norm_BHM is None else metrics | {"slot_length": _mean(norm_BHM.mean(-1), has_tokens_B1)}


def measure_rounds(rounds: Rounds | None) -> dict[str, SumCount]:
  """Means over the chunks of the parallel form.

  rounds: that a chunk took. rounds_change: of its last, the largest change of an inner product over the longest
  direction; above `tolerance` the chunk was left before it was exact.
  """
  if rounds is None:
    return {}
  chunks = jnp.float32(rounds.number.shape[0])
  return {
    "rounds": (rounds.number.sum().astype(jnp.float32), chunks),
    "rounds_change": (rounds.change.sum(), chunks)}


def _mean(value: jax.Array, is_counted: jax.Array) -> SumCount:
  """Sum and count over the entries that count, which broadcast."""
  is_counted = jnp.broadcast_to(is_counted, value.shape)
  return jnp.where(is_counted, jax.lax.stop_gradient(value), 0).sum(), is_counted.sum().astype(jnp.float32)
