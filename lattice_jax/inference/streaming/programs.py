"""The programs of one call: embedding, a step that serves every layer, and the head; compiled once and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lattice_jax.config import ModelConfig
from lattice_jax.inference.compilation import TreeSpec
from lattice_jax.inference.session import SessionState, abstract_state, marked
from lattice_jax.inference.streaming.source import Source
from lattice_jax.marks import Marker
from lattice_jax.memories.registry import find_memory
from lattice_jax.models.block import Block
from lattice_jax.models.decoder import (
  Decoder,
  block_config,
  finish_carried,
  num_groups,
  pattern_blocks,
  split_carried,
)
from lattice_jax.sharding import replicated
from lattice_jax.types import Segment, abstract_segment

Score = Callable[[ModelConfig, Any, jax.Array, jax.Array], Any]


@dataclass(frozen=True)
class Programs:
  """embed: (outside, marker, tokens, segment, previous) → (x, segment, previous). layers: by number, (parameters, x,
  stack, group, segment) → (x, stack), which takes the stack over. head: (outside, x, segment, state) → state, with the
  logits that follow; or, for a `score`, (outside, x, segment, state, targets) → (state, what `score` says).

  groups: the numbers of the groups, on the device. work_bytes: what the programs need at a time besides parameters and
  state.
  """

  embed: Callable[..., Any]
  layers: tuple[Callable[..., Any], ...]
  head: Callable[..., Any]
  groups: tuple[jax.Array, ...]
  work_bytes: int

  def read(
    self, model: ModelConfig, source: Source, marker: Marker | None, tokens_BT: jax.Array, segment: Segment,
    state: SessionState, *targets_BT: jax.Array,
  ) -> Any:
    """Reads the valid tokens of every row, which may be none, and takes the state over; returns what the head does."""
    outside, blocks = source.outside(), [name for name, _ in pattern_blocks(model)]
    x_BTD, segment, previous_BW = self.embed(outside, marker, tokens_BT, segment, state.previous_BW)
    memory = dict(state.memory)

    def compute(layer: int, params: Any) -> jax.Array:
      nonlocal x_BTD
      group, place = divmod(layer, len(blocks))
      name = blocks[place]
      x_BTD, memory[name] = self.layers[layer](params, x_BTD, memory[name], self.groups[group], segment)
      return x_BTD

    source.run(compute)
    return self.head(outside, x_BTD, segment, state.replace(memory=memory, previous_BW=previous_BW), *targets_BT)


def compile_programs(
  model: ModelConfig, source: Source, *, batch: int, max_len: int, length: int, marker: TreeSpec,
  score: Score | None = None,
) -> Programs:
  """The programs for calls of `length` tokens.

  score: what the head computes in the place of logits; (model, {"params": outside}, features, targets) → a tree of
  arrays.
  """
  specs = tuple(TreeSpec.of(source.layer_shapes(layer)) for layer in range(source.num_layers))
  return _compile(model, batch, max_len, length, source.mesh, TreeSpec.of(source.outside_shapes), specs, marker, score)


@functools.lru_cache(maxsize=16)
def _compile(
  model: ModelConfig, batch: int, max_len: int, length: int, mesh: Mesh, outside: TreeSpec,
  layers: tuple[TreeSpec, ...], marker: TreeSpec, score: Score | None,
) -> Programs:
  state, shardings = abstract_state(model, batch, max_len, mesh, marker)
  whole = replicated(mesh)

  def rows(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, length), dtype, sharding=whole)

  tokens_BT, segment = rows(jnp.int32), abstract_segment(rows)
  x_BTD = jax.ShapeDtypeStruct((batch, length, model.dim), jnp.dtype(model.dtype), sharding=whole)
  number = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  embed = jax.jit(functools.partial(_embed, model), out_shardings=whole).lower(
    outside.tree(), marker.tree(), tokens_BT, segment, state.previous_BW).compile()
  if score is None:
    head = jax.jit(functools.partial(_head, model), donate_argnums=3, out_shardings=shardings).lower(
      outside.tree(), x_BTD, segment, state).compile()
  else:
    head = jax.jit(functools.partial(_score, model, score), donate_argnums=3, out_shardings=(shardings, whole)).lower(
      outside.tree(), x_BTD, segment, state, tokens_BT).compile()

  @functools.cache
  def layer_step(place: int, params: TreeSpec) -> Callable[..., Any]:
    name, memory = blocks[place]
    step = functools.partial(_layer_step, block_config(model, place), memory)
    return jax.jit(step, donate_argnums=2, out_shardings=(whole, shardings.memory[name])).lower(
      params.tree(), x_BTD, state.memory[name], number, segment).compile()

  blocks = pattern_blocks(model)
  steps = tuple(layer_step(layer % len(blocks), params) for layer, params in enumerate(layers))
  work = max(work_bytes(program) for program in (embed, head, *steps))
  groups = tuple(jax.device_put([np.int32(group) for group in range(num_groups(model))], whole))
  return Programs(embed=embed, layers=steps, head=head, groups=groups, work_bytes=work + 2 * _nbytes(x_BTD))


def _embed(
  model: ModelConfig, outside: Any, marker: Marker | None, tokens_BT: jax.Array, segment: Segment,
  previous_BW: jax.Array | None,
) -> tuple[jax.Array, Segment, jax.Array | None]:
  segment, previous_BW = marked(marker, tokens_BT, segment, previous_BW)
  x_BTD = Decoder(model).apply({"params": outside}, tokens_BT, segment, method=Decoder.embed)
  return x_BTD, segment, previous_BW


def _layer_step(
  model: ModelConfig, memory: str, params: Any, x_BTD: jax.Array, stack: Any, group: jax.Array, segment: Segment,
) -> tuple[jax.Array, Any]:
  """One block, on layer `group` of the stack of its memory's states."""
  carried = find_memory(memory).carried
  rides = carried is not None and carried.rides(stack)
  here = carried.enter(stack, group) if rides else jax.tree.map(
    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, group, keepdims=False), stack)
  output = Block(model, memory).apply({"params": params}, x_BTD, here, segment, train=False)
  if rides:
    return output.y_BTD, carried.leave(output.state)
  return output.y_BTD, jax.tree.map(
    lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, group, 0), stack, output.state)


def _head(model: ModelConfig, outside: Any, x_BTD: jax.Array, segment: Segment, state: SessionState) -> SessionState:
  """What follows the last valid token of every row; rows that read none keep their logits."""
  decoder, variables = Decoder(model), {"params": outside}
  stacks, _ = split_carried(model, state.memory)
  num_valid_B = segment.valid_BT.sum(axis=1, dtype=jnp.int32)
  last_B1D = jnp.take_along_axis(x_BTD, jnp.maximum(num_valid_B - 1, 0)[:, None, None], axis=1)
  features_B1D = decoder.apply(variables, last_B1D, method=Decoder.features)
  logits_BA = decoder.apply(variables, features_B1D, method=Decoder.logits)[:, 0]
  return state.replace(
    logits_BA=jnp.where(num_valid_B[:, None] > 0, logits_BA, state.logits_BA),
    position_B=state.position_B + num_valid_B,
    memory=state.memory | finish_carried(model, stacks, x_BTD.shape[1]))


def _score(
  model: ModelConfig, score: Score, outside: Any, x_BTD: jax.Array, segment: Segment, state: SessionState,
  targets_BT: jax.Array,
) -> tuple[SessionState, Any]:
  """What `score` says of every position; logits and positions of the state mean nothing."""
  del segment
  stacks, _ = split_carried(model, state.memory)
  features_BTD = Decoder(model).apply({"params": outside}, x_BTD, method=Decoder.features)
  scored = score(model, {"params": outside}, features_BTD, targets_BT)
  return state.replace(memory=state.memory | finish_carried(model, stacks, targets_BT.shape[1])), scored


def work_bytes(program: Any) -> int:
  """Of a compiled program: temporaries, and results that take over no argument."""
  memory = program.memory_analysis()
  return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _nbytes(shape: jax.ShapeDtypeStruct) -> int:
  return shape.size * shape.dtype.itemsize
