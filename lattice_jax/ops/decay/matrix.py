"""Memories that are one matrix a head: their state, and a call of their op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from lattice_jax.dispatch import choose_impl
from lattice_jax.ops.calls import complete_call
from lattice_jax.ops.decay.tokens import Inputs, by_chunk, by_token, encode_documents
from lattice_jax.ops.documents import EMPTY, document_after


@flax.struct.dataclass
class MatrixState:
  """memory_BHKV: a matrix of every head, fp32. document_B: int32, whose it is, EMPTY before the first token."""

  memory_BHKV: jax.Array
  document_B: jax.Array


class MatrixKernel(NamedTuple):
  """A Pallas kernel of such a memory.

  reasons: (tokens of a row, memory) → the arguments of `choose_impl` that say where and when none runs.
  run: (decay, inputs, memory, interpret=) → as `by_chunk`. interpret: runs the TPU's anywhere.
  """

  reasons: Callable[[int, jax.Array], dict[str, str | None]]
  run: Callable[..., tuple[jax.Array, jax.Array]]


def empty_state(
  batch: int, heads: int, key_dim: int, value_dim: int, *, dtype: jnp.dtype = jnp.float32
) -> MatrixState:
  """A state that has seen nothing. Computations are in `dtype`."""
  return MatrixState(jnp.zeros((batch, heads, key_dim, value_dim), dtype), jnp.full((batch,), EMPTY, jnp.int32))


def call_matrix_op(
  op: str, step: Callable[..., Any], one_chunk: Callable[..., Any], inputs: Inputs, decay: jax.Array | None,
  state: MatrixState | None, ids: jax.Array | None, valid: jax.Array | None, *, chunk_len: int, impl: str,
  kernel: MatrixKernel | None = None, start: jax.Array | None = None,
) -> tuple[jax.Array, MatrixState]:
  """Output [B, T, H, V] and next state of `step`, as `by_token` calls it, or of `one_chunk`, as `by_chunk` does.

  inputs: q, k, v and what else the op takes. kernel: None where there is none yet. start: [H, K, V], the memory with
  which documents begin; None is an empty one.
  """
  q, _, v, *_ = inputs
  state, ids, valid = complete_call(
    op, state, ids, valid, like=q, empty=lambda: empty_state(len(q), *q.shape[2:], v.shape[-1]))
  reasons = {"pallas_reason": "there is no Pallas kernel for it yet"}
  if start is not None:
    _check_start(op, start, state.memory_BHKV)
    reasons = {"pallas_reason": "in its kernels documents begin with an empty memory, and `start` is another"}
  elif kernel is not None:
    reasons = kernel.reasons(q.shape[1], state.memory_BHKV)
  chosen = choose_impl(op, impl, **reasons)
  decay, inputs, beginning = encode_documents(inputs, decay, ids, valid, state.document_B, start)
  if chosen == "reference":
    out_BTHV, memory_BHKV = by_token(step, decay, inputs, state.memory_BHKV, beginning)
  elif chosen in ("pallas", "interpret"):
    out_BTHV, memory_BHKV = kernel.run(decay, inputs, state.memory_BHKV, interpret=chosen == "interpret")
  else:
    out_BTHV, memory_BHKV = by_chunk(one_chunk, decay, inputs, state.memory_BHKV, chunk_len, beginning)
  return out_BTHV, MatrixState(memory_BHKV, document_after(ids, valid, state.document_B))


def _check_start(op: str, start: jax.Array, memory_BHKV: jax.Array) -> None:
  if start.shape != memory_BHKV.shape[1:]:
    raise ValueError(
      f"op {op!r} was given a start of shape {start.shape}, and the memory of a row is {memory_BHKV.shape[1:]}; give a "
      "start of this shape, or None for an empty one.")
