"""Exact Lattice recurrence in kernels: what they support, a function with its gradient, the wrapper for meshes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from pallas_kernels import lattice_hopper, lattice_step, lattice_tpu
from pallas_kernels.hopper import reason_against_device
from pallas_kernels.lattice_layout import (
  choose_layout,
  pack_codes,
  pack_gates,
  pack_state,
  pack_values,
  unpack_state,
  unpack_values,
)
from pallas_kernels.tiles import auto_axes, mesh_axis, on_parts

OBJECTIVES = ("decoding", "encoding", "similarity")
STATES = ("retracted", "returning")
# A backward program of a TPU keeps the slots before each of eight tokens, of eight heads at least.
LARGEST_STATE = 256 * 256
MOST_TPU_SLOTS = 768  # of whose codes eight tokens have room beside the largest state
# Sizes up to which the Hopper kernels were compiled for an H100 without spilling a register.
MOST_HOPPER_SLOTS, MOST_HOPPER_VALUES = 64, 128
AUTO_REASON = {"gpu": "its Hopper kernel compiles for an H100 and has not been run on one; impl='pallas' takes it"}


def supports(*, objective: str, state: str, projected: bool, exact: bool, dtype: jnp.dtype, slots: int,
             value_dim: int) -> str | None:
  """Why no kernel does this, wherever it runs; None if one does."""
  if objective not in OBJECTIVES:
    return f"its kernels know the objectives {', '.join(OBJECTIVES)}, not {objective!r}"
  if state not in STATES:
    return f"its kernels are those of slots of length one, state={' or '.join(map(repr, STATES))}, not {state!r}"
  if not projected:
    return "its kernels write only what is orthogonal to a slot, and projected=False writes all"
  if not exact:
    return "its kernels go token by token, form='scan'; other forms are sums of matrix products in XLA"
  if dtype != jnp.float32:
    return f"its kernels keep slots in float32, not {jnp.dtype(dtype).name}"
  if slots * value_dim > LARGEST_STATE:
    return f"its kernels hold heads of at most {LARGEST_STATE:,} numbers, not {slots} slots of {value_dim}"
  return None


def supports_backend(backend: str, *, state: str, slots: int, value_dim: int) -> str | None:
  """Why no kernel runs heads of this size and kind on this backend; None if one does."""
  if backend == "tpu":
    return None if slots <= MOST_TPU_SLOTS else (
      f"its TPU kernel has room for at most {MOST_TPU_SLOTS} slots of a head, not {slots}")
  if backend != "gpu":
    return f"there is no Pallas kernel of it for {backend}"
  if state != "retracted":
    return f"its Hopper kernel is that of state='retracted', not {state!r}"
  if slots > MOST_HOPPER_SLOTS or value_dim > MOST_HOPPER_VALUES:
    return (f"its Hopper kernel keeps a head in registers, at most {MOST_HOPPER_SLOTS} slots of {MOST_HOPPER_VALUES}, "
            f"not {slots} of {value_dim}")
  return reason_against_device()


def recurrence(
  q: jax.Array, k: jax.Array, v: jax.Array, rate: jax.Array, is_start: jax.Array, start: jax.Array, slots: jax.Array, *,
  objective: str, rest: jax.Array | None = None, backend: str = "tpu", interpret: object = False,
  boundary_name: str = "memory_boundary",
) -> tuple[jax.Array, jax.Array]:
  """Out [B, T, H, V] and the slots after the last token, both fp32; differentiable in all but `is_start`.

  Under a mesh of Auto axes "data" and "model", rows are split over the first and heads over the second.

  Args:
    q, k: [B, T, H, M].
    v: [B, T, H, V].
    rate: [B, T, H], size of a step over the forget gate; of returning slots the size alone.
    is_start: bool [B, T], first tokens of documents.
    start: [H, M, V] slots of length one with which documents begin.
    slots: [B, H, M, V] before the first token, of length one or zero.
    objective: one of `OBJECTIVES`.
    rest: [B, T, H], what forgetting takes off a slot, which gets that share of `start` for it; None of retracted slots.
    backend: "tpu" or "gpu", whose kernels are to run.
    interpret: as of `pallas_call`; TPU kernels only.
    boundary_name: under which rematerialisation policies know what is kept for the backward pass.
  """
  gates = (rate,) if rest is None else (rate, rest)
  assert backend == "tpu" or rest is None, "supports_backend says so"
  run = functools.partial(_hopper, objective, boundary_name)
  if backend == "tpu":
    run = functools.partial(_on_tpu, objective, interpret, boundary_name)
  # XLA cannot split a kernel by itself: on every mesh it must be told to run whole ones on parts of the arrays.
  if auto_axes():
    rows, heads = mesh_axis("data", q.shape[0]), mesh_axis("model", q.shape[2])
    token, gate = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None, heads)
    state = PartitionSpec(rows, heads)
    run = on_parts(
      run, (token, token, token, (gate,) * len(gates), PartitionSpec(rows), PartitionSpec(heads), state),
      (token, state))
  return run(q, k, v, gates, is_start, start, slots)


def _on_tpu(objective, interpret, boundary_name, q, k, v, gates, is_start, start, slots):
  """On one device."""
  batch, length, heads, width = q.shape
  layout = choose_layout(batch, length, heads, width, v.shape[-1])
  if length == 1:
    return _one_token(objective, interpret, boundary_name, layout, q, k, v, gates, is_start, start, slots)
  return _recurrence(objective, interpret, boundary_name, layout, q, k, v, gates, is_start, start, slots)


def _pack(layout, q, k, v, gates, is_start, start, slots):
  """What kernels take; starts and gates in fp32."""
  batch, heads = slots.shape[:2]
  is_start = jnp.broadcast_to(is_start[..., None], (*is_start.shape, heads))
  return (
    pack_codes(layout, q), pack_codes(layout, k), pack_values(layout, v),
    tuple(pack_gates(layout, gate.astype(jnp.float32)) for gate in gates),
    pack_gates(layout, is_start.astype(jnp.float32)),
    pack_state(layout, jnp.broadcast_to(start, (batch, *start.shape))), pack_state(layout, slots))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _recurrence(objective, interpret, boundary_name, layout, q, k, v, gates, is_start, start, slots):
  out, last = lattice_tpu.forward(
    layout, objective, *_pack(layout, q, k, v, gates, is_start, start, slots), keeps_boundary=False,
    interpret=interpret)
  return unpack_values(layout, out, v.shape), unpack_state(layout, last, slots.shape)


def _forward(objective, interpret, boundary_name, layout, q, k, v, gates, is_start, start, slots):
  inputs = q, k, v, gates, is_start, start, slots
  out, last, boundary = lattice_tpu.forward(
    layout, objective, *_pack(layout, *inputs), keeps_boundary=True, interpret=interpret)
  out, last = unpack_values(layout, out, v.shape), unpack_state(layout, last, slots.shape)
  # Results are kept too: whatever reads them would otherwise run the kernel again for them.
  out, last, boundary = checkpoint_name((out, last, boundary), boundary_name)
  return (out, last), (*inputs, boundary)


def _backward(objective, interpret, boundary_name, layout, saved, cotangents):
  *inputs, boundary = saved
  d_out, d_last = cotangents
  q, k, v, gates, is_start, start, slots = inputs

  def pack(q, k, v, gates, start, slots):
    q, k, v, gates, _, start, slots = _pack(layout, q, k, v, gates, is_start, start, slots)
    return q, k, v, gates, start, slots

  floats = q, k, v, gates, start, slots
  fp32 = jax.tree.map(lambda x: x.astype(jnp.float32), floats)
  _, unpack = jax.vjp(pack, *fp32)
  packed = _pack(layout, *inputs)
  grads = lattice_tpu.backward(
    layout, objective, *packed[:-1], boundary, pack_values(layout, d_out), pack_state(layout, d_last),
    interpret=interpret)
  d_q, d_k, d_v, d_gates, d_start, d_slots = jax.tree.map(
    lambda grad, x: grad.astype(x.dtype), unpack(tuple(grads)), floats)
  return d_q, d_k, d_v, d_gates, None, d_start, d_slots


_recurrence.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _one_token(objective, interpret, boundary_name, layout, q, k, v, gates, is_start, start, slots):
  slots = jnp.where(is_start[:, :, None, None], start, slots)
  out, slots = lattice_step.step(
    objective, q[:, 0], k[:, 0], v[:, 0], tuple(gate[:, 0] for gate in gates), start, slots, interpret=interpret)
  return out[:, None], slots


def _one_token_forward(objective, interpret, boundary_name, layout, *inputs):
  slots = inputs[-1]
  boundary = pack_state(layout, slots)[:, None]
  return _one_token(objective, interpret, boundary_name, layout, *inputs), (*inputs, boundary)


_one_token.defvjp(_one_token_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _hopper(objective, boundary_name, q, k, v, gates, *slots):
  return lattice_hopper.forward(objective, q, k, v, *gates, *slots, keeps_boundary=False)


def _hopper_forward(objective, boundary_name, q, k, v, gates, *slots):
  out, last, boundary = checkpoint_name(
    lattice_hopper.forward(objective, q, k, v, *gates, *slots, keeps_boundary=True), boundary_name)
  return (out, last), (q, k, v, gates, *slots, boundary)


def _hopper_backward(objective, boundary_name, saved, cotangents):
  q, k, v, (rate,), is_start, start, slots, boundary = saved
  grads = lattice_hopper.backward(objective, q, k, v, rate, is_start, start, boundary, *cotangents)
  floats = q, k, v, rate, start, slots
  d_q, d_k, d_v, d_rate, d_start, d_slots = (grad.astype(x.dtype) for grad, x in zip(grads, floats, strict=True))
  return d_q, d_k, d_v, (d_rate,), None, d_start, d_slots


_hopper.defvjp(_hopper_forward, _hopper_backward)
