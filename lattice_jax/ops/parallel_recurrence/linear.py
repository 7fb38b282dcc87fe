"""Linear recurrences y_t = A_t y_{t−1} + b_t for all tokens at once, and the A_t of a step: its Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Of one token for every row, or of many with an axis of time in front: state before → state after.
Step = Callable[[jax.Array], jax.Array]
# (of later tokens, of earlier ones) → of both
Join = Callable[[jax.Array, jax.Array], jax.Array]


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


def solve_forward(A_CB: jax.Array, b_CB: jax.Array) -> jax.Array:
  """y_t = A_t y_{t−1} + b_t with y before the first token zero; A is diagonal where it has the shape of b."""
  if A_CB.shape == b_CB.shape:
    return _reduce(jnp.multiply, jnp.multiply, A_CB, b_CB)
  return _reduce(_matmul, _apply, A_CB, b_CB.reshape(A_CB.shape[:-1])).reshape(b_CB.shape)


def solve_backward(A_CB: jax.Array, b_CB: jax.Array, *, is_by_token: bool) -> jax.Array:
  """λ_t = A_{t+1}ᵀ λ_{t+1} + b_t with λ after the last token zero; by tokens if A is diagonal and it is asked for."""
  next_CB = jnp.concatenate([A_CB[1:], jnp.zeros_like(A_CB[:1])])
  if A_CB.shape != b_CB.shape:
    next_CB = jnp.swapaxes(next_CB, -1, -2)
  elif is_by_token:
    return jax.lax.scan(_multiply_add, jnp.zeros_like(b_CB[0]), (next_CB, b_CB), reverse=True)[1]
  return solve_forward(next_CB[::-1], b_CB[::-1])[::-1]


def _reduce(join: Join, apply: Join, A_CB: jax.Array, b_CB: jax.Array) -> jax.Array:
  """Every two tokens are one of half as many, whose solution is every second state; a step each gives the others.

  `lax.associative_scan` would also make the products of A from the first token on, for which nobody asks: twice the
  work.
  """
  length = len(b_CB)
  if length == 1:
    return b_CB
  is_even = length % 2 == 0
  A_first, b_first, A_second, b_second = A_CB[: length - 1: 2], b_CB[: length - 1: 2], A_CB[1::2], b_CB[1::2]
  second = _reduce(join, apply, join(A_second, A_first), apply(A_second, b_first) + b_second)
  known = second[:-1] if is_even else second
  first = jnp.concatenate([b_CB[:1], apply(A_CB[2::2], known) + b_CB[2::2]])
  pairs = jnp.stack([first[: len(second)], second], 1).reshape(-1, *b_CB.shape[1:])
  return pairs if is_even else jnp.concatenate([pairs, first[-1:]])


def _multiply_add(y_B: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  y_B = xs[0] * y_B + xs[1]
  return y_B, y_B


def _matmul(second: jax.Array, first: jax.Array) -> jax.Array:
  return jnp.einsum("...IJ,...JK->...IK", second, first, precision="highest")


def _apply(A: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum("...IJ,...J->...I", A, y, precision="highest")
