"""One layer of a stack of states, where it lies in the stack."""

from __future__ import annotations

from typing import Any, NoReturn

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


def refuse_split() -> NoReturn:
  """Raises ValueError: a stack that is written in place is whole, and tokens on several devices are not."""
  raise ValueError(
    "a stack of token caches cannot be read and written by tokens that lie on several devices; use mesh.seq=1, or "
    "evaluate cold windows, each in one call.")
