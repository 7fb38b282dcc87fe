"""h_t = f(h_{t−1}, x_t) for all t, exactly, with an adjoint that knows nothing of how h was found.

Newton's rounds: arXiv 2309.12252 (DEER), 2510.21450 (ParaRNN). Derivations: README.md of this folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lattice_jax.ops.chunk_scan import as_bits, as_floats
from lattice_jax.ops.documents import keep_only, pad_time, select
from lattice_jax.ops.parallel_recurrence.adjoint import Token, adjoint_chunk
from lattice_jax.ops.parallel_recurrence.form import RecurrenceForm, choose_form
from lattice_jax.ops.parallel_recurrence.rounds import Solution, solve_chunk
from lattice_jax.types import MEMORY_BOUNDARY


class Solved(NamedTuple):
  """States after every token [B, T, …], those after the last valid one [B, …], and how the N chunks were solved.

  rounds_N: int32, that each chunk took; 0 of form "scan". residual_N: |f(h_{t−1}, x_t) − h_t| over |h|, the largest of
  each, in what the rounds gave. is_scanned_N: whether a chunk was then taken token by token, since rounds did not end.
  """

  state_BT: jax.Array
  state_B: jax.Array
  rounds_N: jax.Array
  residual_N: jax.Array
  is_scanned_N: jax.Array


def solve(
  step_fn: Callable[[Any, jax.Array, Any], jax.Array], parameters: Any, state_B: jax.Array, inputs_BT: Any,
  *, start: jax.Array | None = None, is_start_BT: jax.Array | None = None, is_valid_BT: jax.Array | None = None,
  form: RecurrenceForm | None = None,
) -> Solved:
  """Runs h_t = step_fn(parameters, h_{t−1}, x_t) over all tokens.

  Gradients reach parameters, the first state, inputs and start. They solve the recurrence's own adjoint equation at
  the states that were found, so they are exact whatever rounds it took to find them.

  Args:
    step_fn: (parameters, state [B, …], inputs [B, …]) → state, row by row; it closes over no array.
    parameters: tree of arrays.
    state_B: [B, …] before the first token; computations are in its dtype.
    inputs_BT: tree of floats [B, T, …], which the step gets in the state's dtype.
    start: [...] state before the first token of a document; None is zero.
    is_start_BT: where documents begin, after which nothing of what was before is left. None: nowhere.
    is_valid_BT: tokens that are none leave the state alone, whatever they hold, NaN included: `keep_only` sees to it.
      None: all are.
    form: `RecurrenceForm()` by default.

  Raises:
    ValueError: step_fn changes the state's shape or dtype, inputs are no floats, or there are no tokens.
  """
  form = form or RecurrenceForm()
  batch, length = jax.tree.leaves(inputs_BT)[0].shape[:2]
  _check(step_fn, parameters, state_B, inputs_BT)
  form = replace(form, name=choose_form(form, length), chunk_len=min(length, form.chunk_len))
  if is_valid_BT is None and length % form.chunk_len:
    is_valid_BT = jnp.ones((batch, length), bool)
  if is_valid_BT is not None:
    inputs_BT = keep_only(is_valid_BT, inputs_BT)
  start = jnp.zeros_like(state_B[0]) if start is None else start.astype(state_B.dtype)
  tokens_NCB = _to_chunks((inputs_BT, is_start_BT, is_valid_BT), form.chunk_len)
  state_NCB, last_B, *how = _solve(step_fn, form, tokens_NCB[0], tokens_NCB[1:], (parameters, start), state_B)
  state_TB = state_NCB.reshape(-1, *state_NCB.shape[2:])[:length]
  return Solved(jnp.moveaxis(state_TB, 0, 1), last_B, *how)


def _check(step_fn, parameters, state_B, inputs_BT) -> None:
  if not jax.tree.leaves(inputs_BT)[0].shape[1]:
    raise ValueError("op 'parallel_recurrence' was given inputs [B, 0, …]; give at least one token.")
  for x in jax.tree.leaves(inputs_BT):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
        f"op 'parallel_recurrence' was given inputs of {x.dtype}, and takes floats; look tokens up or convert them.")
  inputs_B = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), state_B.dtype), inputs_BT)
  after = jax.eval_shape(step_fn, parameters, state_B, inputs_B)
  if (after.shape, after.dtype) != (state_B.shape, state_B.dtype):
    raise ValueError(
      f"op 'parallel_recurrence' was given a step that makes {after.dtype}{after.shape} of a state "
      f"{state_B.dtype}{state_B.shape}; it must give back what it takes.")


def _to_chunks(tree: Any, chunk_len: int) -> Any:
  """[B, T, …] → [N, C, B, …], filled up with invalid tokens."""

  def cut(x_BT):
    x_TB = jnp.moveaxis(pad_time(x_BT, -x_BT.shape[1] % chunk_len), 1, 0)
    return x_TB.reshape(-1, chunk_len, *x_TB.shape[1:])

  return jax.tree.map(cut, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(step_fn, form, inputs_NCB, flags_NCB, learned, state_B):
  return _forward(step_fn, form, inputs_NCB, flags_NCB, learned, state_B)[0]


def _forward(step_fn, form, inputs_NCB, flags_NCB, learned, state_B):
  step = functools.partial(_guarded_step, step_fn, learned)

  def one_chunk(state_B, xs):
    solution = solve_chunk(form, step, state_B, _token(xs, inputs_NCB, state_B.dtype))
    return solution.state_CB[-1], solution

  def one_token(state_B, xs):
    state_B = step(state_B, _token(xs, inputs_NCB, state_B.dtype))
    return state_B, state_B

  bits_NCB = as_bits(inputs_NCB), flags_NCB
  if form.name == "scan":
    # One loop: a loop of chunks in a loop costs more.
    chunks, length = jax.tree.leaves(inputs_NCB)[0].shape[:2]
    last_B, state_TB = jax.lax.scan(one_token, state_B, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), bits_NCB))
    solution = Solution(
      state_TB.reshape(chunks, length, *state_B.shape), jnp.zeros(chunks, jnp.int32), jnp.zeros(chunks, state_B.dtype),
      jnp.zeros(chunks, bool))
  else:
    last_B, solution = jax.lax.scan(one_chunk, state_B, bits_NCB)
  # Results are kept: the adjoint needs all states, and whatever else reads them would run the recurrence again.
  state_NCB, last_B = checkpoint_name((solution.state_CB, last_B), MEMORY_BOUNDARY)
  out = state_NCB, last_B, solution.rounds, solution.residual, solution.is_scanned
  return out, (inputs_NCB, flags_NCB, learned, state_B, state_NCB)


def _backward(step_fn, form, saved, cotangents):
  inputs_NCB, flags_NCB, learned, state_B, state_NCB = saved
  d_state_NCB, d_last_B, *_ = cotangents
  step = functools.partial(_guarded_step, step_fn)
  first_NB = jnp.concatenate([state_B[None], state_NCB[:-1, -1]])

  def one_chunk(carry, xs):
    d_after_B, d_learned = carry
    first_B, state_CB, d_state_CB, *token = xs
    before_CB = jnp.concatenate([first_B[None], state_CB[:-1]])
    d_state_CB = d_state_CB.at[-1].add(d_after_B)
    tokens_CB = _token(token, inputs_NCB, state_B.dtype)
    d_here, d_before_B, d_inputs_CB = adjoint_chunk(form, step, learned, before_CB, tokens_CB, d_state_CB)
    d_inputs_CB = jax.tree.map(lambda d, x: d.astype(x.dtype), d_inputs_CB, inputs_NCB)
    return (d_before_B, jax.tree.map(jnp.add, d_learned, d_here)), as_bits(d_inputs_CB)

  zero = jax.tree.map(jnp.zeros_like, learned)
  (d_first_B, d_learned), d_inputs_NCB = jax.lax.scan(
    one_chunk, (d_last_B, zero), (first_NB, state_NCB, d_state_NCB, as_bits(inputs_NCB), flags_NCB), reverse=True)
  return as_floats(d_inputs_NCB, inputs_NCB), None, d_learned, d_first_B


_solve.defvjp(_forward, _backward)


def _token(xs, inputs_NCB, dtype) -> Token:
  inputs_bits, (is_start_CB, is_valid_CB) = xs
  inputs_CB = as_floats(inputs_bits, inputs_NCB)
  return Token(jax.tree.map(lambda x: x.astype(dtype), inputs_CB), is_start_CB, is_valid_CB)


def _guarded_step(step_fn, learned, state_B: jax.Array, token: Token) -> jax.Array:
  """The step from the document's start where one begins; tokens that are none leave the state alone.

  Jacobians are those of this function: zero where a document begins, one at invalid tokens.
  """
  parameters, start = learned
  before_B = state_B if token.is_start_B is None else select(token.is_start_B, start, state_B)
  after_B = step_fn(parameters, before_B, token.inputs_B)
  return after_B if token.is_valid_B is None else select(token.is_valid_B, after_B, state_B)
