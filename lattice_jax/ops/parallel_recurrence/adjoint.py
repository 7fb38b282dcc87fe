"""Cotangents of one chunk: the recurrence's adjoint is linear, so it takes no rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lattice_jax.ops.parallel_recurrence.form import RecurrenceForm
from lattice_jax.ops.parallel_recurrence.linear import linearize, solve_backward

_TINY = 1e-30
_ROUNDINGS = 100  # of the largest cotangent, by which an equation of the adjoint may be off


class Token(NamedTuple):
  """What the step takes beside the state, as arrays [C, B, …] here; None where no document begins, or all are valid."""

  inputs_B: Any
  is_start_B: jax.Array | None
  is_valid_B: jax.Array | None


# (learned, state before, token) → state after, of one token.
LearnedStep = Callable[[Any, jax.Array, Token], jax.Array]


def adjoint_chunk(
  form: RecurrenceForm, step: LearnedStep, learned: Any, before_CB: jax.Array, tokens_CB: Token, d_state_CB: jax.Array
) -> tuple[Any, jax.Array, Any]:
  """Cotangents of what is learned, of the state before the chunk, and of inputs.

  With g_t the cotangent of the t-th state, λ_t = g_t + J_{t+1}ᵀ λ_{t+1} is that of the t-th equation. Jacobians of the
  form's structure give λ for all tokens at once; the true ones, which `pull` has, then show whether it is one.
  """

  def step_all(learned, before_CB, inputs_CB):
    return jax.vmap(step, in_axes=(None, 0, 0))(learned, before_CB, tokens_CB._replace(inputs_B=inputs_CB))

  _, pull = jax.vjp(step_all, learned, before_CB, tokens_CB.inputs_B)
  is_by_token = form.name == "scan"
  if is_by_token and form.jacobian != "diagonal":
    return _first_alone(pull(_by_token(step, learned, before_CB, tokens_CB, d_state_CB)))
  _, jacobian_CB = linearize(
    form.jacobian, lambda before_CB: step_all(learned, before_CB, tokens_CB.inputs_B), before_CB)
  adjoint_CB = solve_backward(jacobian_CB, d_state_CB, is_by_token=is_by_token)
  pulled = pull(adjoint_CB)
  gap_CB = adjoint_CB - d_state_CB - jnp.concatenate([pulled[1][1:], jnp.zeros_like(pulled[1][:1])])
  limit = _ROUNDINGS * jnp.finfo(adjoint_CB.dtype).eps * jnp.maximum(jnp.abs(adjoint_CB).max(), _TINY)
  return _first_alone(jax.lax.cond(
    jnp.abs(gap_CB).max() <= limit, lambda: pulled,
    lambda: pull(_by_token(step, learned, before_CB, tokens_CB, d_state_CB))))


def _by_token(step, learned, before_CB, tokens_CB, d_state_CB) -> jax.Array:
  """λ of all tokens, from the last to the first."""

  def one_token(d_after_B, xs):
    before_B, token, d_state_B = xs
    adjoint_B = d_state_B + d_after_B
    _, pull = jax.vjp(lambda before_B: step(learned, before_B, token), before_B)
    return pull(adjoint_B)[0], adjoint_B

  return jax.lax.scan(
    one_token, jnp.zeros_like(before_CB[0]), (before_CB, tokens_CB, d_state_CB), reverse=True)[1]


def _first_alone(pulled):
  d_learned, d_before_CB, d_inputs_CB = pulled
  return d_learned, d_before_CB[0], d_inputs_CB
