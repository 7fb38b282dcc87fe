"""The inner model of TTT-Linear, its loss, and the gradient of that loss. Derivations: README.md of this folder."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

_EPS = 1e-6


@flax.struct.dataclass
class Learner:
  """What is learned outside: where the inner model starts, its norm, and how steps grow within a mini-batch.

  weight_HKV, bias_HV: the inner model before the first token of a document. scale_HV, shift_HV: its layer norm's.
  rate_C: factor ≥ 0 on the steps so far, as the token at each place of a mini-batch sees them; C tokens are one.
  """

  weight_HKV: jax.Array
  bias_HV: jax.Array
  scale_HV: jax.Array
  shift_HV: jax.Array
  rate_C: jax.Array

  @property
  def start_HKV(self) -> jax.Array:
    """Weights with the bias as one more row."""
    return jnp.concatenate([self.weight_HKV, self.bias_HV[:, None]], 1)


def with_one(x: jax.Array) -> jax.Array:
  """[…, K] → […, K + 1]: what the row of the bias is multiplied with."""
  return jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)


def layer_norm(z: jax.Array, scale: jax.Array, shift: jax.Array, eps: float = _EPS) -> jax.Array:
  """Over the last axis; the others broadcast."""
  return _standardize(z, eps)[0] * scale + shift


def inner_loss(
  weight_KV: jax.Array, k_K: jax.Array, v_V: jax.Array, scale_V: jax.Array, shift_V: jax.Array
) -> jax.Array:
  """½‖k + LN(W k + b) − v‖² of one token; the last row of the weights is b."""
  return 0.5 * ((k_K + layer_norm(with_one(k_K) @ weight_KV, scale_V, shift_V) - v_V) ** 2).sum()


def output_gradient(z: jax.Array, target: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """∂ ½‖LN(z) − target‖² / ∂z."""
  unit, deviation = _standardize(z)
  d_unit = scale * (unit * scale + shift - target)
  along = (d_unit * unit).mean(-1, keepdims=True)
  return (d_unit - d_unit.mean(-1, keepdims=True) - unit * along) / deviation


def _standardize(z: jax.Array, eps: float = _EPS) -> tuple[jax.Array, jax.Array]:
  centred = z - z.mean(-1, keepdims=True)
  deviation = jnp.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
  return centred / deviation, deviation
