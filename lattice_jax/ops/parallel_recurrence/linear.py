"""Linear recurrences y_t = A_t y_{t−1} + b_t for all tokens at once, and the A_t of a step: its Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Of one token for every row, or of many with an axis of time in front: state before → state after.
Step = Callable[[jax.Array], jax.Array]


def linearize(jacobian: str, step: Step, before_CB: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The step at states [C, B, …], and its Jacobians there.

  They are [C, B, …] where `jacobian` is "diagonal", [C, B, …, S, S] of every S numbers of the last axis where it is
  "block", and [C, B, D, D] of the D numbers of a row where it is "dense": row, then column.
  """
  if jacobian == "diagonal":
    return jax.jvp(step, (before_CB,), (jnp.ones_like(before_CB),))
  if jacobian == "block":
    return _linearize_blocks(step, before_CB)
  shape = before_CB.shape
  after_CBD, jacobian_CBDD = _linearize_blocks(
    lambda flat_CBD: step(flat_CBD.reshape(shape)).reshape(flat_CBD.shape),
    before_CB.reshape(*shape[:2], math.prod(shape[2:])))
  return after_CBD.reshape(shape), jacobian_CBDD


def _linearize_blocks(step: Step, before_CBS: jax.Array) -> tuple[jax.Array, jax.Array]:
  after_CBS, push = jax.linearize(step, before_CBS)
  size = before_CBS.shape[-1]

  def column(index):
    return push(jnp.broadcast_to(jax.nn.one_hot(index, size, dtype=before_CBS.dtype), before_CBS.shape))

  return after_CBS, jax.vmap(column, out_axes=-1)(jnp.arange(size))


def solve_forward(jacobian: str, A_CB: jax.Array, b_CB: jax.Array) -> jax.Array:
  """y_t = A_t y_{t−1} + b_t with y before the first token zero."""
  return _solve(jacobian, A_CB, b_CB, is_reverse=False)


def solve_backward(jacobian: str, A_CB: jax.Array, b_CB: jax.Array) -> jax.Array:
  """λ_t = A_{t+1}ᵀ λ_{t+1} + b_t with λ after the last token zero."""
  next_CB = jnp.concatenate([A_CB[1:], jnp.zeros_like(A_CB[:1])])
  return _solve(jacobian, next_CB if jacobian == "diagonal" else jnp.swapaxes(next_CB, -1, -2), b_CB, is_reverse=True)


def _solve(jacobian: str, A_CB: jax.Array, b_CB: jax.Array, *, is_reverse: bool) -> jax.Array:
  if jacobian == "diagonal":
    return jax.lax.associative_scan(_join_diagonal, (A_CB, b_CB), reverse=is_reverse)[1]
  flat_CB = b_CB.reshape(*A_CB.shape[:-1])
  return jax.lax.associative_scan(_join_blocks, (A_CB, flat_CB), reverse=is_reverse)[1].reshape(b_CB.shape)


def _join_diagonal(first, second):
  return first[0] * second[0], second[0] * first[1] + second[1]


def _join_blocks(first, second):
  joined = jnp.einsum("...IJ,...JK->...IK", second[0], first[0], precision="highest")
  return joined, jnp.einsum("...IJ,...J->...I", second[0], first[1], precision="highest") + second[1]
