"""The states of one chunk by Newton's rounds or plain ones, and token by token where they do not end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.ops.parallel_recurrence.form import RecurrenceForm
from lattice_jax.ops.parallel_recurrence.linear import linearize, solve_forward

_TINY = 1e-30  # of the scale of states that are all zero


class Solution(NamedTuple):
  """States after each token; rounds it took, residual they left, and whether the scan had to take over."""

  state_CB: jax.Array
  rounds: jax.Array
  residual: jax.Array
  is_scanned: jax.Array


def solve_chunk(
  form: RecurrenceForm, step: Callable[[jax.Array, Any], jax.Array], first_B: jax.Array, tokens_CB: Any
) -> Solution:
  """step: (state [B, …], token) → state. first: the state before the chunk. tokens: with an axis of time in front."""

  def step_all(before_CB):
    return jax.vmap(step)(before_CB, tokens_CB)

  guess_CB = step_all(jnp.broadcast_to(first_B, (jax.tree.leaves(tokens_CB)[0].shape[0], *first_B.shape)))
  found_CB, rounds, change = iterate(form, step_all, first_B, guess_CB)
  # One more step takes what the last round left, and shows how much that was.
  state_CB = step_all(_before(first_B, found_CB))
  residual = _relative(state_CB - found_CB, state_CB)
  is_solved = (change <= form.tolerance) & jnp.isfinite(residual)
  state_CB = jax.lax.cond(is_solved, lambda: state_CB, lambda: _scan(step, first_B, tokens_CB))
  return Solution(state_CB, rounds, residual, ~is_solved)


def iterate(form, step_all, first_B, guess_CB) -> tuple[jax.Array, jax.Array, jax.Array]:
  """States, number of rounds, and what the last of them changed.

  With the states of the tokens before it exact, a round makes those of a token exact: neither its own error nor that of
  later tokens has a part in it. So C rounds are exact for C tokens from any guess.
  """

  def advance(carry):
    state_CB, rounds, _ = carry
    before_CB = _before(first_B, state_CB)
    if form.name == "rounds":
      new_CB = step_all(before_CB)
    else:
      stepped_CB, jacobian_CB = linearize(form.jacobian, step_all, before_CB)
      new_CB = state_CB + solve_forward(jacobian_CB, stepped_CB - state_CB)
      # What has overflowed would stay so, though the tokens before it become exact.
      new_CB = jnp.where(jnp.isfinite(new_CB), new_CB, stepped_CB)
    return new_CB, rounds + 1, _relative(new_CB - state_CB, new_CB)

  def goes_on(carry):
    _, rounds, change = carry
    return ~(change <= form.tolerance) & (rounds < form.rounds)

  return jax.lax.while_loop(goes_on, advance, (guess_CB, jnp.int32(0), jnp.asarray(jnp.inf, first_B.dtype)))


def _before(first_B: jax.Array, state_CB: jax.Array) -> jax.Array:
  return jnp.concatenate([first_B[None], state_CB[:-1]])


def _scan(step, first_B: jax.Array, tokens_CB: Any) -> jax.Array:
  def one_token(state_B, token):
    state_B = step(state_B, token)
    return state_B, state_B

  return jax.lax.scan(one_token, first_B, tokens_CB)[1]


def _relative(moved: jax.Array, size: jax.Array) -> jax.Array:
  return jnp.abs(moved).max() / jnp.maximum(jnp.abs(size).max(), _TINY)
