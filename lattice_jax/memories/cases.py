"""What a memory's op is checked with: cases at sizes of choice, functions of float arrays alone, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

FEW = 16  # slots, and tokens of a chunk, of the recurrences


@dataclass(frozen=True)
class Sizes:
  """One row of `tokens`, in two documents; `width` of keys and values, as many slots or codes as `slots`."""

  tokens: int = 256
  heads: int = 4
  width: int = 64
  slots: int = 64
  dtype: str = "float32"


@dataclass(frozen=True)
class Case:
  """run: (inputs, impl) → arrays, in which the state after the call is. inputs: what gradients are taken of."""

  op: str
  form: str
  run: Callable[[tuple[jax.Array, ...], str], Any]
  inputs: tuple[jax.Array, ...]


def normal(sizes: Sizes, count: int, width: int) -> tuple[jax.Array, ...]:
  """[1, T, H, width], in the dtype of activations."""
  numbers = arrays(count, *[(1, sizes.tokens, sizes.heads, width)] * count)
  return tuple(x.astype(sizes.dtype) for x in numbers)


def arrays(seed: int, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """One array of normal numbers for each shape."""
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def gates(sizes: Sizes) -> jax.Array:
  """[1, T, H] between 0 and 1."""
  return jax.nn.sigmoid(arrays(7, (1, sizes.tokens, sizes.heads))[0])


def documents(sizes: Sizes) -> tuple[jax.Array, jax.Array]:
  """A document that ends after two thirds, and one after it; all tokens are valid."""
  ids = (jnp.arange(sizes.tokens) * 3 >= 2 * sizes.tokens).astype(jnp.int32)[None]
  return ids, jnp.ones(ids.shape, bool)


def unit(x: jax.Array) -> jax.Array:
  return (x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)).astype(x.dtype)
