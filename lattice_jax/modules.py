"""Parameters with logical axes, norms, sinusoids: what every layer uses."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lattice_jax.ops.products import multiply, scaled
from lattice_jax.ops.stored_weight import StoredWeight


def wide(dtype: jax.typing.DTypeLike) -> jnp.dtype:
  """In what a layer of this dtype sums, norms and keeps its gates: float32, or what is finer."""
  return jnp.promote_types(dtype, jnp.float32)


class Weight(nn.LogicallyPartitioned):
  """The box of a parameter that multiplies activations: what weight decay pulls towards zero, and nothing else.

  A mark, because axes do not tell: the biases of several heads have two, and learned starts of a state three.
  """


def weight(
  module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], *, fan_in: int,
) -> jax.Array:
  """A float32 weight with logical axes, normal with variance 1/fan_in, that decays (`Weight`)."""
  stored = module.get_variable("params", name)
  if isinstance(stored, StoredWeight):
    return stored.array(shape)
  normal = nn.initializers.normal(fan_in**-0.5)
  return module.param(name, lambda *args: Weight(normal(*args), axes), shape, jnp.float32)


def table(module: nn.Module, name: str, shape: tuple[int, int], axes: tuple[str, str]) -> StoredWeight:
  """A weight whose rows are looked up, of variance 1."""
  stored = module.get_variable("params", name)
  return stored if isinstance(stored, StoredWeight) else StoredWeight(weight(module, name, shape, axes, fan_in=1))


def parameter(
  module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], axes: tuple[str, ...],
) -> jax.typing.ArrayLike:
  """A float32 parameter with logical axes that does not decay."""
  return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def offset(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
  """A bias, zero at the start."""
  return parameter(module, name, nn.initializers.zeros, shape, axes)


def linear(
  module: nn.Module, name: str, x: jax.Array, outputs: tuple[int, ...], axes: tuple[str, ...], *, num_inputs: int = 1,
) -> jax.Array:
  """x [..., *inputs] → [..., *outputs] in the dtype of x, by the weight `name`.

  axes: logical axes of the inputs, which are the last `num_inputs` of x, and of the outputs.
  """
  leading, inputs = x.shape[:-num_inputs], x.shape[x.ndim - num_inputs:]
  stored = module.get_variable("params", name)
  if isinstance(stored, StoredWeight):
    return stored.multiply(x.reshape(*leading, -1), outputs)
  array = weight(module, name, (*inputs, *outputs), axes, fan_in=math.prod(inputs))
  return multiply(x, array.astype(x.dtype), num_inputs)


def split_heads(
  module: nn.Module, name: str, x_BTD: jax.Array, heads: int, width: int, axes: tuple[str, str],
) -> jax.Array:
  """[B, T, heads, width] in the dtype of x, by the weight `name`. axes: logical axes of heads and width."""
  return linear(module, name, x_BTD, (heads, width), ("embed", *axes))


def join_heads(module: nn.Module, out_BTHV: jax.Array, dim: int) -> jax.Array:
  """[B, T, dim] in the dtype of the heads' outputs, by the weight "out"."""
  return linear(module, "out", out_BTHV, (dim,), ("heads", "value", "embed"), num_inputs=2)


def rms_normalize(x: jax.Array, *, eps: float = 1e-6) -> jax.Array:
  """x / root mean square over the last axis, in fp32 at least, without gain."""
  x = x.astype(wide(x.dtype))
  return scaled(x, jax.lax.rsqrt((x * x).mean(-1) + eps))


class RMSNorm(nn.Module):
  """Root-mean-square norm over the model width; the result has the input's dtype."""

  has_gain: bool
  has_bias: bool
  eps: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    y_BTD = rms_normalize(x_BTD, eps=self.eps)
    if self.has_gain:
      y_BTD *= parameter(self, "gain", nn.initializers.ones, (x_BTD.shape[-1],), ("embed",))
    if self.has_bias:
      y_BTD += offset(self, "bias", (x_BTD.shape[-1],), ("embed",))
    return y_BTD.astype(x_BTD.dtype)


def sinusoids(places: jax.Array, dim: int, *, max_wavelength: float) -> jax.Array:
  """[…, dim] for whole numbers of any shape: sines, then cosines, of place · max_wavelength^(-2k/dim)."""
  frequency_K = max_wavelength ** (-jnp.arange(dim // 2, dtype=jnp.float32) * 2 / dim)
  angle_K = places[..., None].astype(jnp.float32) * frequency_K
  return jnp.concatenate([jnp.sin(angle_K), jnp.cos(angle_K)], -1)
