"""One layer of a stack of states, where it lies in the stack."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class StackView:
  """Layer `layer` of a stack of states, whose leaves have an axis of layers in front; written in place."""

  stack: Any
  layer: jax.Array

  @classmethod
  def alone(cls, state: Any) -> StackView:
    """The only layer of its stack."""
    return cls(stack=jax.tree.map(lambda leaf: leaf[None], state), layer=jnp.int32(0))

  @property
  def counts(self) -> Any:
    """This layer's state. Use only its small fields: a large one would be copied."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, self.layer, keepdims=False), self.stack)
