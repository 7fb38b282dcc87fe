"""How many numbers a decoder's memory is, part by part: what «at equal state» is measured by."""

from __future__ import annotations

import collections
import math

import jax
import jax.numpy as jnp

from lattice_jax.config import ModelConfig
from lattice_jax.models.decoder import init_state, num_groups
from lattice_jax.models.parameters import named_leaves


def state_numbers(model: ModelConfig, max_len: int) -> dict[str, dict[str, int]]:
  """Part of the state → floating-point numbers of a row and layer, heads together, of each memory in the pattern.

  Where layers differ, it is their mean.

  max_len: tokens that a cache of all tokens has room for. «tail» is what the convolutions wait for.
  """
  state = jax.eval_shape(lambda: init_state(model, 1, max_len))
  found: dict[str, collections.Counter[str]] = {}
  for path, leaf in named_leaves(state).items():
    block, *parts = path.split("/")
    memory = found.setdefault(model.pattern[int(block.removeprefix("block_"))], collections.Counter())
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
      continue
    part = "tail" if "tail" in parts else parts[-1].rpartition("_")[0]
    memory[part] += math.prod(leaf.shape) / num_groups(model)  # the first axis stacks layers, all or some of them
  return {memory: {part: round(numbers) for part, numbers in parts.items()} for memory, parts in found.items()}


def describe_state(model: ModelConfig, max_len: int) -> str:
  """As in "unit 4,096 + tail 960", of every memory of a mixed pattern by name."""
  memories = state_numbers(model, max_len)
  texts = {
    memory: " + ".join(f"{part} {numbers:,}" for part, numbers in sorted(parts.items(), key=lambda item: -item[1]))
    for memory, parts in memories.items()}
  return "; ".join(text if len(texts) == 1 else f"{memory}: {text}" for memory, text in texts.items())
