"""One model under patterns of different lengths: how its blocks are stacked, and whether stored ones fit a pattern.

A pattern that names each layer keeps their parameters apart, which training some of them needs. It unrolls the model,
though, so that compiling takes minutes; the shortest pattern computes the same in one program for all its repetitions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lattice_jax.config import MeshConfig, ModelConfig
from lattice_jax.models.decoder import abstract_variables
from lattice_jax.models.parameters import named_leaves
from lattice_jax.sharding import param_shardings, unbox


def shortest_pattern(model: ModelConfig) -> ModelConfig:
  """The same layers under the shortest pattern whose repetitions they are; as it was where layers are not scanned."""
  pattern = model.pattern
  if not model.scan_layers:
    return model
  length = next(n for n in range(1, len(pattern) + 1) if pattern == pattern[:n] * (len(pattern) // n))
  return dataclasses.replace(model, pattern=pattern[:length])


def restack(variables: Any, before: ModelConfig, after: ModelConfig, mesh: Mesh, rules: MeshConfig) -> Any:
  """The parameters and buffers of `before` as `after` stacks them, sharded over the mesh by its rules.

  Memories of the same parameters may have taken one another's place. Nothing changes where `after` cannot have the
  blocks of `before`, since its pattern does not repeat the shortest one of `before`.
  """
  unit, new = len(shortest_pattern(before).pattern), len(after.pattern)
  if len(before.pattern) == new or new % unit or before.layers != after.layers or not after.scan_layers:
    return variables
  shardings = {name: param_shardings(part, mesh, rules) for name, part in abstract_variables(after).items()}

  def change(variables: Any) -> Any:
    return _restacked(_restacked(variables, len(before.pattern), unit), unit, new)

  return jax.jit(change, out_shardings=shardings)(variables)


def _restacked(variables: Any, old: int, new: int) -> Any:
  """Blocks of patterns of `old` blocks as those of `new`; one length divides the other."""

  def block(blocks: dict[str, Any], n: int) -> Any:
    if old <= new:
      return jax.tree.map(lambda leaf: leaf[n // old::new // old], blocks[f"block_{n % old}"])
    sources = [blocks[f"block_{place}"] for place in range(n, old, new)]
    return jax.tree.map(
      lambda *leaves: jnp.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]), *sources)

  def part(tree: Any) -> Any:
    if "groups" not in tree:
      return tree
    # a memory without buffers has no block there
    names = {f"block_{n}": n for n in range(new) if f"block_{n % old}" in tree["groups"]}
    return {**tree, "groups": {name: block(tree["groups"], n) for name, n in names.items()}}

  return {name: part(tree) for name, tree in variables.items()}


def check_variables_fit(model: ModelConfig, variables: Any) -> None:
  """Raises ValueError if overrides describe a model with parameters and buffers other than the stored ones."""
  wanted = _shapes(abstract_variables(model))
  stored = _shapes(variables)
  changed = sorted(dict(wanted.items() ^ stored.items()))
  if changed:
    raise ValueError(
      f"with these overrides the model's {changed[0]} would not be what the checkpoint holds; override only fields "
      "that leave parameters and codebooks as they are, such as model.vq.cache.")


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
  return {name: leaf.shape for name, leaf in named_leaves(unbox(variables)).items()}
