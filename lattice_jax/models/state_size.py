"""How large a decoder's memory is: in numbers part by part, and in bytes, by which «at equal state» is measured."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import NamedTuple

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
  found: dict[str, collections.Counter[str]] = {}
  for block, part, leaf in _arrays(model, max_len):
    memory = found.setdefault(model.pattern[int(block.removeprefix("block_"))], collections.Counter())
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
      memory[part] += math.prod(leaf.shape) / num_groups(model)  # the first axis stacks layers, all or some of them
  return {memory: {part: round(numbers) for part, numbers in parts.items()} for memory, parts in found.items()}


def describe_state(model: ModelConfig, max_len: int) -> str:
  """As in "unit 4,096 + tail 960", of every memory of a mixed pattern by name."""
  memories = state_numbers(model, max_len)
  texts = {
    memory: " + ".join(f"{part} {numbers:,}" for part, numbers in sorted(parts.items(), key=lambda item: -item[1]))
    for memory, parts in memories.items()}
  return "; ".join(text if len(texts) == 1 else f"{memory}: {text}" for memory, text in texts.items())


class StateBytes(NamedTuple):
  """Bytes of a row and layer that live from one token to the next. tail: those of the convolutions, not in memory."""

  memory: int
  tail: int

  def text(self) -> str:
    """As in "16,388 + tail 3,840"."""
    return f"{self.memory:,}" + f" + tail {self.tail:,}" * bool(self.tail)


def state_bytes(model: ModelConfig, max_len: int) -> StateBytes:
  """Of all arrays of the state, what a chunk or mini-batch that is open holds among them; their mean over layers.

  max_len: as of `state_numbers`.
  """
  found = collections.Counter()
  for _, part, leaf in _arrays(model, max_len):
    found["tail" if part == "tail" else "memory"] += math.prod(leaf.shape) * leaf.dtype.itemsize / model.layers
  return StateBytes(round(found["memory"]), round(found["tail"]))


def _arrays(model: ModelConfig, max_len: int) -> Iterator[tuple[str, str, jax.ShapeDtypeStruct]]:
  """(block of the pattern, part of its memory, shape and dtype) of the arrays that the state of one row holds."""
  state = jax.eval_shape(lambda: init_state(model, 1, max_len))
  for path, leaf in named_leaves(state).items():
    block, *parts = path.split("/")
    yield block, "tail" if "tail" in parts else parts[-1].rpartition("_")[0], leaf
