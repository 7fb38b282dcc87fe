"""Maps the arrays of our decoder to the tensors of a Llama-family file, with the change of shape.

Files hold matrices as [out, in] with heads flattened; ours are [in …, out …] with heads as axes, stacked over the
repetitions of the pattern.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.models.decoder import abstract_variables

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OUTSIDE = {"embedding": EMBEDDING, "head": HEAD, "final_norm/gain": "model.norm.weight"}
_IN_BLOCK = {
  "memory_norm/gain": "input_layernorm.weight",
  "memory/query": "self_attn.q_proj.weight", "memory/query_bias": "self_attn.q_proj.bias",
  "memory/key": "self_attn.k_proj.weight", "memory/key_bias": "self_attn.k_proj.bias",
  "memory/value": "self_attn.v_proj.weight", "memory/value_bias": "self_attn.v_proj.bias",
  "memory/out": "self_attn.o_proj.weight", "memory/out_bias": "self_attn.o_proj.bias",
  "mlp_norm/gain": "post_attention_layernorm.weight",
  "mlp/gate": "mlp.gate_proj.weight", "mlp/up": "mlp.up_proj.weight", "mlp/down": "mlp.down_proj.weight",
}


def leaf_name(path: tuple[Any, ...]) -> str:
  """The path of a parameter, such as groups/block_0/memory/query."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


@functools.lru_cache(maxsize=8)
def parameter_shapes(model: ModelConfig) -> Any:
  """The tree of our parameters' shapes; blocks are stacked.

  Only one block of each memory is traced, however long the pattern is.
  """
  repeats = model.layers // len(model.pattern)
  tree_of = {
    memory: _traced(dataclasses.replace(model, pattern=(memory,), layers=repeats)) for memory in set(model.pattern)}
  blocks = {f"block_{n}": tree_of[memory]["groups"]["block_0"] for n, memory in enumerate(model.pattern)}
  return tree_of[model.pattern[0]] | {"groups": blocks}


def _traced(model: ModelConfig) -> Any:
  return nn.unbox(abstract_variables(model)["params"])


def file_names(leaf: str, model: ModelConfig) -> list[str]:
  """The tensors of an array: one outside the blocks, else one for each repetition of the pattern."""
  if leaf in _OUTSIDE:
    return [_OUTSIDE[leaf]]
  _, block, name = leaf.split("/", 2)
  first, step = int(block.removeprefix("block_")), len(model.pattern)
  return [f"model.layers.{layer}.{_IN_BLOCK[name]}" for layer in range(first, model.layers, step)]


def is_in_block(leaf: str) -> bool:
  """Whether an array is a stack of those of all repetitions of a block."""
  return leaf not in _OUTSIDE


def block_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape without the axis over stacked blocks."""
  return shape[1:] if is_in_block(leaf) else shape


def is_matrix(leaf: str) -> bool:
  """Whether it multiplies activations; norms and biases do not."""
  kind = leaf.rsplit("/", 1)[-1]
  return kind != "gain" and not kind.endswith("_bias")


def file_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The tensor's shape; `shape` is that of one block's array."""
  kind = leaf.rsplit("/", 1)[-1]
  if kind == "embedding":
    return shape
  if not is_matrix(leaf):
    return (math.prod(shape),)
  num_inputs = 2 if kind == "out" else 1
  return math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs])


def from_file(leaf: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """One block's array from the tensor; a view if possible."""
  return tensor if leaf == "embedding" else tensor.T.reshape(shape)


def to_file(leaf: str, array: np.ndarray) -> np.ndarray:
  """The tensor from one block's array."""
  rows, *columns = file_shape(leaf, array.shape)
  if leaf == "embedding" or not columns:
    return array.reshape(rows, *columns)
  return np.ascontiguousarray(array.reshape(columns[0], rows).T)


def sizing_tensors(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Name → shape of tensors that together determine every size of the model.

  Unlike `wanted_tensors` it is cheap for any size, so a file is compared with it first.
  """
  attention, dim = model.attention, (model.dim,)
  rows = {"q": attention.heads * attention.key_dim, "k": attention.kv_heads * attention.key_dim}
  return {
    EMBEDDING: (model.vocab, *dim), "model.norm.weight": dim,
    **{f"model.layers.{layer}.input_layernorm.weight": dim for layer in range(model.layers)},
    **{f"model.layers.0.self_attn.{name}_proj.weight": (size, *dim) for name, size in rows.items()},
    "model.layers.0.mlp.gate_proj.weight": (model.mlp_dim, *dim)}


def wanted_tensors(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Name → shape of every tensor in a file of this model."""
  wanted = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(model)):
    name = leaf_name(path)
    shape = file_shape(name, block_shape(name, leaf.shape))
    wanted |= dict.fromkeys(file_names(name, model), shape)
  return wanted
