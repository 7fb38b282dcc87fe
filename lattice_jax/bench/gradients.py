"""Functions to be timed with their gradients, and what they give without rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def with_gradients(run: Callable[..., tuple[jax.Array, ...]]) -> Callable[..., tuple[jax.Array, ...]]:
  """What `run` gives, and the gradients of the squares of its first result with respect to all inputs."""

  def loss(*inputs):
    outputs = run(*inputs)
    return (outputs[0] ** 2).sum(), outputs

  def outputs_and_gradients(*inputs):
    gradients, outputs = jax.grad(loss, argnums=range(len(inputs)), has_aux=True)(*inputs)
    return *outputs, *gradients

  return outputs_and_gradients


def in_float64(run: Callable[..., Any], arguments: Sequence[jax.Array]) -> list[np.ndarray]:
  with jax.enable_x64(True):
    return [np.asarray(x) for x in jax.jit(run)(*(jnp.asarray(x, jnp.float64) for x in arguments))]
