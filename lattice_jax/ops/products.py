"""Products in the order in which XLA's CPU backend is fast, forward and backward; elsewhere they are as any others.

Two kinds of program cost it a multiple of what the numbers take (jaxlib 0.10.2; docs/results/bench_vq_cpu):

* `(a * b).sum(-1)` of two arrays with four axes or more runs on one core, 25 to 70 times as long as the same sum as a
  contraction. Autodiff writes it wherever a row is multiplied by one number.
* The gradient of a weight as (gradient of the output)ᵀ · input: the transposed operand is the wider one in most layers,
  and the elementwise work before it is done again in the transposed order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def inner(a: Float[Array, "*rows K"], b: Float[Array, "*rows K"]) -> Float[Array, "*rows"]:
  """Σ a·b over the last axis, at full precision."""
  return jnp.einsum("...K,...K->...", a, b, precision="highest")


def scaled(x: Float[Array, "*rows K"], factor: Float[Array, "*rows"]) -> Float[Array, "*rows K"]:
  """Every row times its own factor, whose gradient is an `inner` product."""
  return jnp.einsum("...K,...->...K", x, factor, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(x: jax.Array, array: jax.Array, num_inputs: int = 1) -> jax.Array:
  """x [..., *inputs] · array [*inputs, *outputs] → [..., *outputs]; num_inputs: how many axes are inputs."""
  return jnp.tensordot(x, array, num_inputs)


def _multiply_fwd(x, array, num_inputs):
  return multiply(x, array, num_inputs), (x, array)


def _multiply_bwd(num_inputs, saved, d_y):
  x, array = saved
  outputs = tuple(range(num_inputs, array.ndim))
  d_x = jnp.tensordot(d_y, array, (tuple(range(d_y.ndim - len(outputs), d_y.ndim)), outputs))
  leading = tuple(range(x.ndim - num_inputs))
  return d_x, jnp.tensordot(x, d_y, (leading, leading))


multiply.defvjp(_multiply_fwd, _multiply_bwd)
