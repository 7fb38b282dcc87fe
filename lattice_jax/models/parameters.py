"""Parameters: how many there are, what they hold, and floating-point operations a token, by formula."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig, RecurrentConfig

# How often a token of the scan goes over a head's state: look-ups, write, read.
_STATE_PASSES = {
  "linear": 2, "scalar_decay": 2, "gla": 2, "deltanet": 3, "gated_deltanet": 3, "gated_slots": 2, "ttt_linear": 4}


def count_parameters(tree: Any) -> int:
  """Number of array elements of a tree of arrays or shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def content_digest(tree: Any) -> str:
  """32 hex digits of what the arrays hold, by name: the same wherever they were read, however they are sharded."""
  sums = jax.tree_util.tree_leaves_with_path(jax.device_get(jax.tree.map(_sum_of_hashes, tree)))
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): int(total) for path, total in sums}
  return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]


@jax.jit
def _sum_of_hashes(leaf: jax.Array) -> jax.Array:
  """Of every element's bits and place; as a sum of integers it depends on no order."""
  word = leaf.astype(jnp.uint32)
  if jnp.issubdtype(leaf.dtype, jnp.floating):
    word = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
  place = jnp.zeros(leaf.shape, jnp.uint32)
  for axis in range(leaf.ndim):
    stride = 0x9E3779B9 * math.prod(leaf.shape[axis + 1:]) % 2**32
    place += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
  word ^= place
  # not linear, so that a change of all elements alike, such as of their signs, does not cancel out
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    word = (word ^ (word >> shift)) * jnp.uint32(factor)
  return jnp.sum(word ^ (word >> 16), dtype=jnp.uint32)


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
  """Multiply-adds count two; forward and backward (three forwards) of one token, mean over a sequence.

  Analytic, because XLA's own count takes the body of a loop once.
  """
  mlp = 0 if config.block == "gau" else config.dim * config.mlp_dim * (3 if config.mlp == "swiglu" else 2)
  per_pattern = sum(_memory_multiply_adds(config, memory, seq_len) + mlp for memory in config.pattern)
  layers = per_pattern * config.layers / len(config.pattern)
  return 6.0 * (layers + config.dim * config.vocab)


def _memory_multiply_adds(config: ModelConfig, memory: str, seq_len: int) -> float:
  if memory == "vq":
    vq = config.vq
    seen = vq.block_len + vq.reach + (vq.codes if vq.cache else 0)
    bias = vq.heads * vq.key_dim * (vq.reach + 1)
    codebook = vq.kv_heads * vq.codes * (2 * vq.key_dim + vq.value_dim)  # search, statistics, fold into the cache
    return _projections(config, vq) + vq.heads * seen * (vq.key_dim + vq.value_dim) + bias + codebook
  if memory == "lattice":
    lattice = config.lattice
    gates = config.dim * lattice.heads * (2 if lattice.forget else 1)
    # the token scan: residual, inner products, write, lengths, read
    return _recurrent(config, lattice, lattice.slots) + gates + 5 * lattice.heads * lattice.slots * lattice.value_dim
  if memory in _STATE_PASSES:
    return _baseline_multiply_adds(config, memory)
  attention = config.attention
  seen = (seq_len + 1) / 2 if memory == "attention" else min(attention.window, (seq_len + 1) / 2)
  return _projections(config, attention) + attention.heads * seen * (attention.key_dim + attention.value_dim)


def _projections(config: ModelConfig, memory: Any) -> int:
  queries = memory.heads * (memory.key_dim + memory.value_dim * (2 if memory.gated else 1))
  return config.dim * (queries + memory.kv_heads * (memory.key_dim + memory.value_dim))


def _recurrent(config: ModelConfig, memory: RecurrentConfig, key_dim: int) -> int:
  """What the frame of the recurrent memories costs."""
  inputs = 2 * key_dim + memory.value_dim
  values = memory.value_dim * (2 if memory.gated else 1)
  return memory.heads * (config.dim * (inputs + values) + memory.conv_width * inputs)


def _baseline_multiply_adds(config: ModelConfig, memory: str) -> int:
  baseline, heads = config.baseline, config.baseline.heads
  key_dim = baseline.value_dim if memory == "ttt_linear" else baseline.key_dim
  state = key_dim * baseline.value_dim
  if memory == "gated_slots":
    state = baseline.slots * (key_dim + baseline.value_dim)
  gate = config.dim * heads
  gates = {
    "linear": 0, "scalar_decay": gate, "gla": baseline.gate_rank * (config.dim + heads * key_dim), "deltanet": gate,
    "gated_deltanet": 2 * gate, "gated_slots": gate * baseline.slots, "ttt_linear": gate}
  return _recurrent(config, baseline, key_dim) + gates[memory] + _STATE_PASSES[memory] * heads * state
