"""Adafactor (arXiv 1804.04235) from optax's parts: without momentum, and layer by layer for stacked parameters."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lattice_jax.sharding import is_box

DECAY_EXPONENT = 0.8  # at update t the moments keep the fraction 1 − t^-0.8 of their value
CLIP_RMS = 1.0


def adafactor(stacked: Any) -> optax.GradientTransformation:
  """Divides the gradient by its running root mean square, clips the result and scales it with the parameter.

  Large matrices keep the running squares as row and column means only. The clip limits the root mean square of the
  result to CLIP_RMS; the scale is the root mean square of the parameter. Each step mixes the elements of a tensor, so
  parameters that are `stacked` (a tree of bool) over layers are updated layer by layer. The state is a tree like the
  parameters, with one `optax.FactoredState` for each.
  """
  moments = optax.scale_by_factored_rms(decay_rate=DECAY_EXPONENT)
  scale = optax.chain(optax.clip_by_block_rms(CLIP_RMS), optax.scale_by_param_block_rms())

  def init_tensor(is_stacked: bool, param: Any) -> optax.FactoredState:
    tensor = param.value if is_box(param) else param
    state = (jax.vmap(moments.init) if is_stacked else moments.init)(tensor)
    # row and column means are small and replicated; a moment of the parameter's shape is sharded like the parameter
    is_whole = is_box(param) and state.v.shape == tensor.shape
    return state._replace(v=param.replace_boxed(state.v)) if is_whole else state

  def update_tensor(is_stacked: bool, grad: jax.Array, state: Any, param: jax.Array) -> tuple[jax.Array, Any]:
    def update_one(grad: jax.Array, state: Any, param: jax.Array) -> tuple[jax.Array, Any]:
      change, state = moments.update(grad, state, param)
      return scale.update(change, scale.init(param), param)[0], state

    return (jax.vmap(update_one) if is_stacked else update_one)(grad, state, param)

  def init(params: Any) -> Any:
    return jax.tree.map(init_tensor, stacked, params)

  def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    both = jax.tree.map(update_tensor, stacked, grads, state, params)
    return tuple(jax.tree.map(lambda _, pair, part=part: pair[part], stacked, both) for part in (0, 1))

  return optax.GradientTransformation(init, update)
