"""How much a text's loss depends on what each layer's attention gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inspect.op_inputs import unstack
from lattice_jax.memories.softmax.layer import SoftmaxAttention
from lattice_jax.models.decoder import Decoder, init_state
from lattice_jax.types import whole_segment


def layer_weights(model: ModelConfig, variables: Any, tokens_BT: np.ndarray) -> np.ndarray:
  """[L]: nats that a token's loss rises, to second order, for each unit of squared length added to a layer's output.

  The curvature is that of the empirical Fisher information, half the squared gradient, taken as alike in all
  directions: ½ · mean_t ‖∂ loss / ∂ y_t‖² / D. The loss is the sum over the text, the mean one over its second half:
  the first token has gradients of another size, and no window hides anything from it. An estimate by which layers are
  compared, not a forecast.
  """
  # unrolled, so that every layer's output can be reached by its name
  plain = dataclasses.replace(model, scan_layers=False, remat="none")
  variables = {name: unstack(tree, model) for name, tree in variables.items()}
  zeros_LBTD = jnp.zeros((model.layers, len(tokens_BT), tokens_BT.shape[1] - 1, model.dim))

  def loss(change_LBTD: jax.Array, variables: Any, tokens_BT: jax.Array) -> jax.Array:
    def add(method, args, kwargs, context):
      output = method(*args, **kwargs)
      if not isinstance(context.module, SoftmaxAttention) or context.method_name != "__call__":
        return output
      return output.replace(y_BTD=output.y_BTD + change_LBTD[_layer(context.module.path, model)])

    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    with nn.intercept_methods(add):
      nll_BT, _ = Decoder(plain).apply(
        variables, inputs_BT, targets_BT, init_state(plain, len(inputs_BT)), whole_segment(*inputs_BT.shape),
        method=Decoder.score)
    return nll_BT.sum()

  gradient_LBTD = jax.jit(jax.grad(loss))(zeros_LBTD, variables, jnp.asarray(tokens_BT))
  square_LBT = np.asarray((gradient_LBTD**2).sum(-1), np.float64)
  return square_LBT[:, :, square_LBT.shape[2] // 2:].mean((1, 2)) / 2 / model.dim


def _layer(path: tuple[str, ...], model: ModelConfig) -> int:
  group, block = (int(name.rpartition("_")[2]) for name in path[:2])
  return group * len(model.pattern) + block
