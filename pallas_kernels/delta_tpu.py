"""The delta rule with decays on a TPU, a chunk of tokens at a time in matrix products, forward and backward.

Grid: rows, a head of a sequence each (parallel) × chunks of C tokens (in order, backwards for the adjoint). Blocks of a
program: q, k [C, K]; v, out [C, V]; gates [8, 128], a line of steps and one of decays where a token has one; decays
[C, K] where every channel has one; states [V, K], transposed so that decays of channels lie along lanes: before the
first token, before the chunk (saved forward, read backward), after the last. Scratch, all fp32: the running state or
its cotangent [V, K]; the shares of all sizes of blocks [log₂ C + 1, 2, C, K or 1]; tables of pairs [2·C, C] and the
inverse [C, C]; what is missing and what is changed [C, V]; queries over keys [2·C, K].

VMEM: 4·(V·K + C·((2·log₂ C + 2)·D + 2·(K + V) + 9·128)) bytes of scratch forward, D the larger of K and 128, backward
4·C·(2·D + 5·K + 3·V + 5·128) more, and two of every block: 1.4 MiB in all for 128 keys and values. Everything is fp32,
and no product rounds its factors to bf16.

Registers: a program is a chain of short steps, each of which reads what it needs from VMEM and leaves there what it
makes. The equations are those of memories/delta/README.md; those of the adjoint stand there too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.delta_decay import across, blocks
from pallas_kernels.delta_pairs import (
  adjoint_by_channel,
  adjoint_by_head,
  fill_levels,
  rows_of,
  scores_by_channel,
  scores_by_head,
  stack,
  to_columns,
  to_rows,
  whole,
)
from pallas_kernels.tiles import LANES, SUBLANES, Operands, dot_fp32, launch

STEP, DECAY = 0, 1  # lines of gates


@dataclass(frozen=True)
class Sizes:
  """Of a call. rows: heads of sequences. by_channel: whether every key channel has its own decay."""

  rows: int
  chunks: int
  chunk: int
  key_dim: int
  value_dim: int
  by_channel: bool

  @property
  def state(self) -> tuple[int, int]:
    """Of a head, as the kernels hold it."""
    return self.value_dim, self.key_dim


def forward(
  sizes: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, gates: jax.Array, decay: jax.Array | None, state: jax.Array,
  *, keeps_boundary: bool, interpret: object = False,
) -> dict[str, jax.Array]:
  """Arrays by name: out [R, T, V], last [R, V, K], and if asked for boundary [R, N, V, K], the state before each chunk.

  Args:
    sizes: of the call; R rows, N chunks, T = N·C.
    q, k: [R, T, K].
    v: [R, T, V].
    gates: fp32 [R, N, 8, 128], the step of each token and its decay, if it is one, in the first two rows.
    decay: fp32 [R, T, K], or None.
    state: fp32 [R, V, K], before the first token.
    keeps_boundary: whether the backward pass will follow.
    interpret: as of `pallas_call`.
  """
  results: Operands = {
    "out": (jax.ShapeDtypeStruct(v.shape, jnp.float32), *_tokens(sizes, sizes.value_dim)),
    "last": (jax.ShapeDtypeStruct(state.shape, jnp.float32), *_resident(sizes))}
  if keeps_boundary:
    results["boundary"] = (
      jax.ShapeDtypeStruct((sizes.rows, sizes.chunks, *sizes.state), jnp.float32), *_boundary(sizes))
  return launch(
    functools.partial(_forward_kernel, sizes), name="delta_forward", grid=(sizes.rows, sizes.chunks), parallel=1,
    prefetch=_zero(interpret),
    operands=_inputs(sizes, q, k, v, gates, decay) | {"start": (state, *_resident(sizes))}, results=results,
    scratch=_scratch(sizes), flops=_flops(sizes), interpret=interpret)


def backward(
  sizes: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, gates: jax.Array, decay: jax.Array | None,
  boundary: jax.Array, d_out: jax.Array, d_last: jax.Array, *, interpret: object = False,
) -> dict[str, jax.Array]:
  """Cotangents by name, d_q, d_k, d_v, d_gates, d_decay (of channels), d_start, shaped as what `forward` takes.

  Those of q, k and v have their dtypes. boundary, d_out, d_last: as `forward` returns them.
  """
  def back(n):
    return sizes.chunks - 1 - n

  operands = _inputs(sizes, q, k, v, gates, decay, back) | {
    "boundary": (boundary, *_boundary(sizes, back)),
    "d_out": (d_out, *_tokens(sizes, sizes.value_dim, back)), "d_last": (d_last, *_resident(sizes))}
  results = {
    f"d_{name}": (jax.ShapeDtypeStruct(array.shape, array.dtype), *where)
    for name, (array, *where) in _inputs(sizes, q, k, v, gates, decay, back).items()}
  results["d_start"] = (jax.ShapeDtypeStruct(d_last.shape, jnp.float32), *_resident(sizes))
  return launch(
    functools.partial(_backward_kernel, sizes), name="delta_backward", grid=(sizes.rows, sizes.chunks), parallel=1,
    prefetch=_zero(interpret), operands=operands, results=results,
    scratch=_scratch(sizes) | _adjoint_scratch(sizes), flops=3 * _flops(sizes), interpret=interpret)


def _zero(interpret):
  """For `_in_steps`; an interpreter has no registers, and takes several times as long to compile branches."""
  return () if interpret else (jnp.zeros(1, jnp.int32),)


def _inputs(sizes, q, k, v, gates, decay, order=lambda n: n) -> Operands:
  inputs = {
    "q": (q, *_tokens(sizes, sizes.key_dim, order)), "k": (k, *_tokens(sizes, sizes.key_dim, order)),
    "v": (v, *_tokens(sizes, sizes.value_dim, order)),
    "gates": (gates, (None, None, SUBLANES, LANES), lambda r, n, *_: (r, order(n), 0, 0))}
  if sizes.by_channel:
    inputs["decay"] = (decay, *_tokens(sizes, sizes.key_dim, order))
  return inputs


def _tokens(sizes, width, order=lambda n: n):
  return (None, sizes.chunk, width), lambda r, n, *_: (r, order(n), 0)


def _resident(sizes):
  return (None, *sizes.state), lambda r, n, *_: (r, 0, 0)


def _boundary(sizes, order=lambda n: n):
  return (None, None, *sizes.state), lambda r, n, *_: (r, order(n), 0, 0)


def _scratch(sizes):
  chunk, num_blocks = sizes.chunk, len(blocks(sizes.chunk))
  shapes = {
    "state": sizes.state, "columns": (chunk, LANES),
    "levels": (num_blocks + 1, 2, chunk, sizes.key_dim if sizes.by_channel else 1),
    "scores": (2 * chunk, chunk), "strict": (chunk, chunk), "right": (chunk, chunk), "inverse": (chunk, chunk),
    "stack": (2 * chunk, sizes.key_dim), "missing": (chunk, sizes.value_dim), "change": (chunk, sizes.value_dim)}
  if not sizes.by_channel:
    shapes |= {"products": (2 * chunk, chunk), "between": (chunk, chunk), "after": (SUBLANES, chunk)}
  return {name: (shape, jnp.float32) for name, shape in shapes.items()}


def _adjoint_scratch(sizes):
  chunk = sizes.chunk
  shapes = {
    "d_scores": (2 * chunk, chunk), "d_tokens": (2 * chunk, sizes.key_dim),
    "d_shares": (2, chunk, sizes.key_dim if sizes.by_channel else 1), "d_change": (chunk, sizes.value_dim),
    "d_values": (2 * chunk, sizes.value_dim), "d_stack": (2 * chunk, sizes.key_dim), "d_step": (chunk, 1),
    "d_left": (chunk, sizes.key_dim)}
  shapes |= {"here": (2 * chunk, chunk)} if sizes.by_channel else {
    "d_between": (chunk, chunk), "d_after": (chunk, LANES), "d_lines": (SUBLANES, LANES)}
  return {name: (shape, jnp.float32) for name, shape in shapes.items()}


def _flops(sizes):
  chunk, tokens = sizes.chunk, sizes.rows * sizes.chunks * sizes.chunk
  pairs = chunk * sizes.key_dim * 2 * (len(blocks(chunk)) if sizes.by_channel else 1)
  return 2 * tokens * (
    3 * sizes.key_dim * sizes.value_dim + pairs + 2 * chunk * sizes.value_dim + 2 * len(blocks(chunk)) * chunk**2)


def _forward_kernel(sizes, *zero_and_refs):
  *zero, refs = zero_and_refs
  number = pl.program_id(1)

  @pl.when(number == 0)
  def _():
    refs["state"][...] = refs["start"][...]

  if "boundary" in refs:
    refs["boundary"][...] = refs["state"][...]
  _in_steps(zero, _forward_chunk(sizes, refs))

  @pl.when(number == sizes.chunks - 1)
  def _():
    refs["last"][...] = refs["state"][...]


def _in_steps(zero: list[jax.Ref], program: Iterator[None]) -> None:
  """Runs a program whose steps end with `yield`, each in a branch of its own if there is a zero in memory.

  The branch is always taken, but the compiler cannot know that. It moves nothing across; else it begins more at once
  than there are registers for. So a step may not use what another computed, but only what that wrote.
  """
  ended, last = object(), None
  while last is not ended:
    # a function of its own for each step: JAX traces a function once
    def advance():
      nonlocal last
      last = next(program, ended)

    if zero:
      pl.when(zero[0][0] == 0)(advance)
    else:
      advance()


def _forward_chunk(sizes, refs):
  queries, state_ref = rows_of(0, sizes.chunk), refs["state"]
  yield from _pairs(sizes, refs)
  yield from _change(refs, state_ref)
  refs["out"][...] = dot_fp32(refs["stack"][queries], state_ref[...], 1, 1)
  yield
  refs["out"][...] += dot_fp32(refs["scores"][queries] + _own(refs), refs["change"][...], 1, 0)
  yield
  left_CK = refs["k"][...].astype(jnp.float32) * refs["levels"][whole(refs), 1]
  state_ref[...] = (
    refs["levels"][whole(refs), 0, sizes.chunk - 1:] * state_ref[...] + dot_fp32(refs["change"][...], left_CK, 0, 0))


def _pairs(sizes, refs):
  """What does not depend on the state: gates as columns, shares, scores, the inverse."""
  refs["columns"][...] = to_columns(refs["gates"][...])[:sizes.chunk]
  yield
  if sizes.by_channel:
    fill_levels(refs["levels"], refs["decay"][...])
    yield
    yield from scores_by_channel(refs)
  else:
    fill_levels(refs["levels"], refs["columns"][:, DECAY:DECAY + 1])
    yield
    yield from scores_by_head(refs)
  refs["strict"][...] = _column(refs, STEP) * refs["scores"][rows_of(1, sizes.chunk)]
  yield
  yield from _invert(refs["strict"], refs["right"], refs["inverse"])


def _column(refs, gate):
  return refs["columns"][:, gate:gate + 1]


def _own(refs):
  """[C, C]: products of queries with their own tokens' keys, on the diagonal."""
  own_C1 = jnp.sum(refs["q"][...].astype(jnp.float32) * refs["k"][...].astype(jnp.float32), 1, keepdims=True)
  return jnp.where(_is_diagonal(refs["inverse"].shape), own_C1, 0.0)


def _is_diagonal(shape):
  return jax.lax.broadcasted_iota(jnp.int32, shape, 0) == jax.lax.broadcasted_iota(jnp.int32, shape, 1)


def _invert(strict_ref, right_ref, inverse_ref):
  """(I + strict)⁻¹ from the inverses X of its diagonal blocks of 1, 2, 4 … tokens: X − X L X, L what lies between."""
  shape = strict_ref.shape
  inverse_ref[...] = _is_diagonal(shape).astype(jnp.float32) - jnp.where(across(1, shape), strict_ref[...], 0.0)
  for block in blocks(shape[0])[1:]:
    right_ref[...] = dot_fp32(jnp.where(across(block, shape), strict_ref[...], 0.0), inverse_ref[...], 1, 0)
    inverse_ref[...] -= dot_fp32(inverse_ref[...], right_ref[...], 1, 0)
  yield


def _change(refs, state_ref):
  """Writes what is missing of values and what changes them; queries and keys as they find the state to `stack`."""
  stack(refs, refs["levels"][whole(refs), 0])
  keys = rows_of(1, refs["k"].shape[0])
  refs["missing"][...] = refs["v"][...].astype(jnp.float32) - dot_fp32(refs["stack"][keys], state_ref[...], 1, 1)
  yield
  refs["change"][...] = dot_fp32(refs["inverse"][...], _column(refs, STEP) * refs["missing"][...], 1, 0)
  yield


def _backward_kernel(sizes, *zero_and_refs):
  *zero, refs = zero_and_refs
  number = pl.program_id(1)

  @pl.when(number == 0)
  def _():
    refs["state"][...] = refs["d_last"][...]

  _in_steps(zero, _backward_chunk(sizes, refs))

  @pl.when(number == sizes.chunks - 1)
  def _():
    refs["d_start"][...] = refs["state"][...]


def _backward_chunk(sizes, refs):
  chunk, d_state_ref = sizes.chunk, refs["state"]
  yield from _pairs(sizes, refs)
  yield from _change(refs, refs["boundary"])
  yield from _change_adjoint(refs, d_state_ref)
  yield from _solve_adjoint(refs)
  yield from _read_adjoint(sizes, refs, d_state_ref)
  yield from (adjoint_by_channel if sizes.by_channel else adjoint_by_head)(refs)
  refs["d_q"][...] = refs["d_tokens"][rows_of(0, chunk)].astype(refs["d_q"].dtype)
  refs["d_k"][...] = refs["d_tokens"][rows_of(1, chunk)].astype(refs["d_k"].dtype)
  if sizes.by_channel:
    refs["d_decay"][...] = refs["d_shares"][0]
  yield
  d_gates = [refs["d_step"][...]] if sizes.by_channel else [refs["d_step"][...], refs["d_shares"][0]]
  refs["d_gates"][...] = to_rows(d_gates)


def _change_adjoint(refs, d_state_ref):
  """Cotangents of the changes, from outputs and from the state after the chunk, and of scores."""
  chunk, scores_ref, d_scores_ref = refs["k"].shape[0], refs["scores"], refs["d_scores"]
  queries = rows_of(0, chunk)
  left_CK = refs["k"][...].astype(jnp.float32) * refs["levels"][whole(refs), 1]
  refs["d_change"][...] = dot_fp32(left_CK, d_state_ref[...], 1, 1)
  yield
  refs["d_change"][...] += dot_fp32(scores_ref[queries] + _own(refs), refs["d_out"][...], 0, 0)
  yield
  d_scores_ref[queries] = dot_fp32(refs["d_out"][...], refs["change"][...], 1, 1)
  yield


def _solve_adjoint(refs):
  """Cotangents of what is missing, which are those of v, of the products of keys, and of steps."""
  chunk = refs["k"].shape[0]
  keys = rows_of(1, chunk)
  refs["d_change"][...] = dot_fp32(refs["inverse"][...], refs["d_change"][...], 0, 0)
  yield
  step_C1 = _column(refs, STEP)
  d_strict_CC = -dot_fp32(refs["d_change"][...], refs["change"][...], 1, 1)
  # scores are zero where `strict` is not a variable
  d_step_C1 = jnp.sum(d_strict_CC * refs["scores"][keys], 1, keepdims=True)
  refs["d_scores"][keys] = step_C1 * d_strict_CC
  refs["d_step"][...] = d_step_C1 + jnp.sum(refs["d_change"][...] * refs["missing"][...], 1, keepdims=True)
  d_v_CV = step_C1 * refs["d_change"][...]
  refs["d_v"][...] = d_v_CV.astype(refs["d_v"].dtype)
  refs["d_values"][rows_of(0, chunk)] = refs["d_out"][...]
  refs["d_values"][keys] = -d_v_CV
  yield


def _read_adjoint(sizes, refs, d_state_ref):
  """Cotangents of q and k from a token with itself and from the state; of the chunk's shares; of the state before."""
  chunk, state_ref, d_tokens_ref = sizes.chunk, refs["boundary"], refs["d_tokens"]
  queries, keys = rows_of(0, chunk), rows_of(1, chunk)

  def of_shares(x_CK):
    return x_CK if sizes.by_channel else jnp.sum(x_CK, 1, keepdims=True)

  refs["d_stack"][...] = dot_fp32(refs["d_values"][...], state_ref[...], 1, 0)
  yield
  refs["d_left"][...] = dot_fp32(refs["change"][...], d_state_ref[...], 1, 0)
  yield
  before_CD, d_left_CK = refs["levels"][whole(refs), 0], refs["d_left"][...]
  q_CK, k_CK = refs["q"][...].astype(jnp.float32), refs["k"][...].astype(jnp.float32)
  d_own_C1 = jnp.sum(
    jnp.where(_is_diagonal(refs["inverse"].shape), refs["d_scores"][queries], 0.0), 1, keepdims=True)
  d_tokens_ref[queries] = refs["d_stack"][queries] * before_CD + d_own_C1 * k_CK
  d_tokens_ref[keys] = (
    refs["d_stack"][keys] * before_CD + d_own_C1 * q_CK + d_left_CK * refs["levels"][whole(refs), 1])
  refs["d_shares"][0] = of_shares(refs["d_stack"][queries] * q_CK + refs["d_stack"][keys] * k_CK)
  refs["d_shares"][1] = of_shares(d_left_CK * k_CK)
  yield
  refs["d_shares"][0, chunk - 1:] += of_shares(jnp.sum(state_ref[...] * d_state_ref[...], 0, keepdims=True))
  yield
  d_state_ref[...] *= refs["levels"][whole(refs), 0, chunk - 1:]
  d_state_ref[...] += dot_fp32(refs["d_values"][...], refs["stack"][...], 0, 0)
  yield
