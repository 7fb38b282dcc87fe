"""The delta rule with decays in kernels: what they support, a function with its gradient, the wrapper for meshes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from pallas_kernels import delta_tpu, on_hopper
from pallas_kernels.delta_tpu import Sizes
from pallas_kernels.tiles import LANES, SUBLANES, auto_axes, mesh_axis, on_parts, pad_to, round_up

# Tokens of a chunk, and numbers of a head's keys and of its values. Programs with more of either compile, but their
# products do not fit the registers of a TPU.
CHUNK = 64
_SHORTEST_CHUNK, _LONGEST_CHUNK = 16, CHUNK
MOST_NUMBERS = 128


def supports(*, dtype: jnp.dtype) -> str | None:
  """Why no kernel does this, wherever it runs; None if one does."""
  return None if dtype == jnp.float32 else f"its kernels keep the memory in float32, not {jnp.dtype(dtype).name}"


def supports_backend(backend: str, *, key_dim: int, value_dim: int) -> str | None:
  """Why no kernel runs heads of this size on this backend; None if one does."""
  if backend == "gpu":
    return on_hopper.delta().supports(key_dim=key_dim)
  if backend != "tpu":
    return f"there is no Pallas kernel of it for {backend}"
  if max(key_dim, value_dim) > MOST_NUMBERS:
    return f"its TPU kernel takes heads of at most {MOST_NUMBERS} key and value numbers, not {key_dim} and {value_dim}"
  return None


def prefers_xla(backend: str, length: int) -> str | None:
  """Why a kernel would not be faster on this backend; None if it should be."""
  if backend == "gpu":
    return on_hopper.delta().AUTO_REASON
  return f"{length} tokens fill less than one chunk of {_SHORTEST_CHUNK}" if length < _SHORTEST_CHUNK else None


def choose_chunk(chunk_len: int, length: int) -> int:
  """Tokens of a chunk: what was asked for (0: `CHUNK`), no more than there are, filled up to a power of two."""
  asked = min(_filled(chunk_len or CHUNK), _filled(length))
  return min(max(asked, _SHORTEST_CHUNK), _LONGEST_CHUNK)


def _filled(size):
  return 1 << (size - 1).bit_length()


def recurrence(
  q: jax.Array, k: jax.Array, v: jax.Array, step: jax.Array, decay: jax.Array, memory: jax.Array, *,
  chunk_len: int = 0, backend: str = "tpu", interpret: object = False, boundary_name: str = "memory_boundary",
) -> tuple[jax.Array, jax.Array]:
  """Out [B, T, H, V] and the memory after the last token, both fp32; differentiable in all arrays.

  Under a mesh of Auto axes "data" and "model", rows are split over the first and heads over the second.

  Args:
    q, k: [B, T, H, K].
    v: [B, T, H, V].
    step: [B, T, H].
    decay: [B, T, H, 1] or [B, T, H, K], in [0, 1]; zero where a document begins.
    memory: fp32 [B, H, K, V], before the first token.
    chunk_len: as of `choose_chunk`; a GPU goes token by token, in tiles that fit.
    backend: "tpu" or "gpu", whose kernels are to run.
    interpret: as of `pallas_call`; TPU kernels only.
    boundary_name: under which rematerialisation policies know what is kept for the backward pass.
  """
  run = functools.partial(_on_gpu, boundary_name)
  if backend == "tpu":
    run = functools.partial(_on_tpu, chunk_len, interpret, boundary_name)
  # XLA cannot split a kernel by itself: on every mesh it must be told to run whole ones on parts of the arrays.
  if auto_axes():
    rows, heads = mesh_axis("data", q.shape[0]), mesh_axis("model", q.shape[2])
    token, state = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
    run = on_parts(run, (token,) * 5 + (state,), (token, state))
  return run(q, k, v, step, decay, memory)


def _on_gpu(boundary_name, q, k, v, step, decay, memory):
  """On one device; channels of a head that has one decay share it."""
  return _hopper(boundary_name, q, k, v, step, jnp.broadcast_to(decay, k.shape), memory)


def _on_tpu(chunk_len, interpret, boundary_name, q, k, v, step, decay, memory):
  """On one device."""
  batch, length, heads, key_dim = q.shape
  chunk = choose_chunk(chunk_len, length)
  # registers have eight rows, and values of states lie along them
  sizes = Sizes(
    batch * heads, -(-length // chunk), chunk, round_up(key_dim, SUBLANES), round_up(v.shape[-1], SUBLANES),
    by_channel=decay.shape[-1] > 1)
  return _recurrence(sizes, interpret, boundary_name, q, k, v, step, decay, memory)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _recurrence(sizes, interpret, boundary_name, *inputs):
  results = delta_tpu.forward(sizes, *_pack(sizes, *inputs), keeps_boundary=False, interpret=interpret)
  return _unpack(results, *inputs)


def _forward(sizes, interpret, boundary_name, *inputs):
  results = delta_tpu.forward(sizes, *_pack(sizes, *inputs), keeps_boundary=True, interpret=interpret)
  # Results are kept too: whatever reads them would otherwise run the kernel again for them.
  out, last, boundary = checkpoint_name((*_unpack(results, *inputs), results["boundary"]), boundary_name)
  return (out, last), (inputs, boundary)


def _backward(sizes, interpret, boundary_name, saved, cotangents):
  inputs, boundary = saved
  packed, unpack = jax.vjp(functools.partial(_pack, sizes), *inputs)
  d_out, d_last = jax.vjp(functools.partial(_unpack_pair, inputs), *_packed_results(sizes))[1](cotangents)
  grads = delta_tpu.backward(sizes, *packed[:-1], boundary, d_out, d_last, interpret=interpret)
  d_decay = grads["d_decay"] if sizes.by_channel else None
  return unpack((grads["d_q"], grads["d_k"], grads["d_v"], grads["d_gates"], d_decay, grads["d_start"]))


_recurrence.defvjp(_forward, _backward)


def _pack(sizes, q, k, v, step, decay, memory):
  """What kernels take: [rows, tokens, …], whole chunks; the state transposed."""
  length, tokens = q.shape[1], sizes.chunks * sizes.chunk

  def by_row(x_BTHK, width):
    x_RTK = jnp.swapaxes(x_BTHK, 1, 2).reshape(sizes.rows, length, -1)
    return pad_to(x_RTK, {1: tokens, 2: width})

  decay = decay.astype(jnp.float32)
  decay_RTD = jnp.swapaxes(decay, 1, 2).reshape(sizes.rows, length, -1)
  # a token that is not there decays nothing
  decay_RTD = pad_to(decay_RTD, {1: tokens, 2: sizes.key_dim if sizes.by_channel else 1}, 1)
  gates = [by_row(step.astype(jnp.float32)[..., None], 1)] + [decay_RTD] * (not sizes.by_channel)
  gates_RNGC = jnp.concatenate(gates, -1).reshape(sizes.rows, sizes.chunks, sizes.chunk, -1).swapaxes(2, 3)
  memory_RVK = jnp.swapaxes(memory, 2, 3).reshape(sizes.rows, v.shape[-1], q.shape[-1])
  return (
    by_row(q, sizes.key_dim), by_row(k, sizes.key_dim), by_row(v, sizes.value_dim),
    pad_to(gates_RNGC, {2: SUBLANES, 3: LANES}), decay_RTD if sizes.by_channel else None,
    pad_to(memory_RVK, {1: sizes.value_dim, 2: sizes.key_dim}))


def _unpack(results, q, k, v, step, decay, memory):
  return _unpack_pair((q, k, v, step, decay, memory), results["out"], results["last"])


def _unpack_pair(inputs, out_RTV, last_RVK):
  """Out [B, T, H, V] and memory [B, H, K, V]."""
  memory, (batch, length, heads, value_dim) = inputs[-1], inputs[2].shape
  out_BHTV = out_RTV[:, :length, :value_dim].reshape(batch, heads, length, value_dim)
  last_RVK = last_RVK[:, :value_dim, :memory.shape[2]]
  return jnp.swapaxes(out_BHTV, 1, 2), jnp.swapaxes(last_RVK.reshape(batch, heads, value_dim, -1), 2, 3)


def _packed_results(sizes):
  """Arrays shaped as the kernels' results; only their shapes are of use."""
  tokens = sizes.chunks * sizes.chunk
  return jnp.zeros((sizes.rows, tokens, sizes.value_dim)), jnp.zeros((sizes.rows, *sizes.state))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hopper(boundary_name, *inputs):
  return on_hopper.delta().forward(*inputs, keeps_boundary=False)


def _hopper_forward(boundary_name, *inputs):
  out, last, boundary = checkpoint_name(on_hopper.delta().forward(*inputs, keeps_boundary=True), boundary_name)
  return (out, last), (inputs, boundary)


def _hopper_backward(boundary_name, saved, cotangents):
  inputs, boundary = saved
  grads = on_hopper.delta().backward(*inputs[:-1], boundary, *cotangents)
  return tuple(grad.astype(x.dtype) for grad, x in zip(grads, inputs, strict=True))


_hopper.defvjp(_hopper_forward, _hopper_backward)
