"""A GRU whose units see themselves alone, so that its Jacobian is diagonal: ParaGRU (arXiv 2510.21450)."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.documents import EMPTY, document_after, document_starts, keep_only, select
from lattice_jax.ops.parallel_recurrence import RecurrenceForm, Solved, solve

__all__ = ["GRUState", "GRUWeights", "empty_state", "gru"]


@flax.struct.dataclass
class GRUState:
  """hidden_BHV: fp32. document_B: int32, whose it is, EMPTY before the first token."""

  hidden_BHV: jax.Array
  document_B: jax.Array


@flax.struct.dataclass
class GRUWeights:
  """What a unit multiplies its own state with, for update gate, reset gate and candidate."""

  update_HV: jax.Array
  reset_HV: jax.Array
  candidate_HV: jax.Array


def empty_state(batch: int, heads: int, value_dim: int, *, dtype: jnp.dtype = jnp.float32) -> GRUState:
  """A state that has seen nothing. Computations are in `dtype`."""
  return GRUState(jnp.zeros((batch, heads, value_dim), dtype), jnp.full((batch,), EMPTY, jnp.int32))


def step(weights: GRUWeights, hidden_BHV: jax.Array, inputs: tuple[jax.Array, ...]) -> jax.Array:
  """h' = (1 − z) h + z c. inputs: what the token adds to the logits of z and r and to c before its tanh."""
  update_BHV, reset_BHV, candidate_BHV = inputs
  z_BHV = jax.nn.sigmoid(weights.update_HV * hidden_BHV + update_BHV)
  r_BHV = jax.nn.sigmoid(weights.reset_HV * hidden_BHV + reset_BHV)
  c_BHV = jnp.tanh(weights.candidate_HV * (r_BHV * hidden_BHV) + candidate_BHV)
  return hidden_BHV + z_BHV * (c_BHV - hidden_BHV)


def gru(
  update: Float[Array, "B T H V"], reset: Float[Array, "B T H V"], candidate: Float[Array, "B T H V"],
  weights: GRUWeights, state: GRUState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, form: RecurrenceForm | None = None, impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], GRUState]:
  """Moves every unit a share z towards a candidate that it and the token make; the output is the new state.

      z = σ(a_z h + update)   r = σ(a_r h + reset)   c = tanh(a_c r h + candidate)   h ← (1 − z) h + z c

  Args:
    update, reset, candidate: what tokens bring, biases included.
    weights: a_z, a_r and a_c.
    state: what came before; None starts without tokens.
    ids, valid: document of each token; `solve` makes invalid tokens (a suffix) leave the state alone.
      None: one document, all valid.
    form: how it is solved; all forms are exact. `RecurrenceForm()` by default.
    impl: "reference" is the definition, token by token.

  Returns:
    Output in the state's dtype and the next state.
  """
  return gru_solved(update, reset, candidate, weights, state, ids, valid, form=form, impl=impl)[:2]


def gru_solved(
  update: Float[Array, "B T H V"], reset: Float[Array, "B T H V"], candidate: Float[Array, "B T H V"],
  weights: GRUWeights, state: GRUState | None = None, ids: Int[Array, "B T"] | None = None,
  valid: Bool[Array, "B T"] | None = None, *, form: RecurrenceForm | None = None, impl: str = "auto",
) -> tuple[Float[Array, "B T H V"], GRUState, Solved | None]:
  """As `gru`, and how it was solved; None of the reference."""
  state, ids, valid = complete_call(
    "gru", state, ids, valid, like=update, empty=lambda: empty_state(len(update), *update.shape[2:]))
  chosen = choose_impl("gru", impl, pallas_reason="there is no Pallas kernel for it yet")
  is_start_BT, inputs = document_starts(ids, valid, state.document_B), (update, reset, candidate)
  document_B = document_after(ids, valid, state.document_B)
  if chosen == "reference":
    out_BTHV, hidden_BHV = _by_token(weights, keep_only(valid, inputs), is_start_BT, valid, state.hidden_BHV)
    return out_BTHV, GRUState(hidden_BHV, document_B), None
  solved = solve(
    step, weights, state.hidden_BHV, inputs, is_start_BT=is_start_BT, is_valid_BT=valid, form=form)
  return solved.state_BT, GRUState(solved.state_B, document_B), solved


def _by_token(weights, inputs, is_start_BT, valid, hidden_BHV) -> tuple[jax.Array, jax.Array]:
  def one_token(hidden_BHV, xs):
    token, is_start_B, is_valid_B = xs
    before_BHV = select(is_start_B, jnp.zeros_like(hidden_BHV), hidden_BHV)
    hidden_BHV = select(is_valid_B, step(weights, before_BHV, token), hidden_BHV)
    return hidden_BHV, hidden_BHV

  inputs_T = jax.tree.map(lambda x_BT: jnp.moveaxis(x_BT.astype(hidden_BHV.dtype), 1, 0), inputs)
  hidden_BHV, out_TBHV = jax.lax.scan(one_token, hidden_BHV, (inputs_T, is_start_BT.T, valid.T))
  return jnp.moveaxis(out_TBHV, 0, 1), hidden_BHV
