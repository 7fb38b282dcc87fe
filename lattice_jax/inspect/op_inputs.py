"""What the layers of a model hand to their ops while it reads a text."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.models.decoder import Decoder, init_state, num_groups
from lattice_jax.types import Segment


def read_op_inputs(model: ModelConfig, variables: Any, tokens_BT: np.ndarray, segment: Segment) -> Any:
  """What every layer reports in Flax's collection "intermediates", which exists only when it is requested."""
  # a scan over layers would have to stack the collection in training too; unrolled layers need no such support
  plain = dataclasses.replace(model, scan_layers=False, remat="none")
  return _read(plain, {name: unstack(tree, model) for name, tree in variables.items()}, jnp.asarray(tokens_BT), segment)


@functools.partial(jax.jit, static_argnums=0)
def _read(model: ModelConfig, variables: Any, tokens_BT: jax.Array, segment: Segment) -> Any:
  state = init_state(model, len(tokens_BT))
  return Decoder(model).apply(variables, tokens_BT, state, segment, mutable=["intermediates"])[1]["intermediates"]


def op_inputs(sown: Any, model: ModelConfig, layer: int) -> dict[str, jax.Array | None]:
  """Of one layer: what it reports, such as queries and keys [B, T, …] with their positions."""
  group, block = divmod(layer, len(model.pattern))
  (inputs,) = sown[f"group_{group}"][f"block_{block}"]["memory"]["op_inputs"]
  return inputs


def unstack(tree: Any, model: ModelConfig) -> Any:
  """Turns the variables of stacked layers into those of unrolled layers."""
  if "groups" not in tree:
    return tree
  rest = {name: part for name, part in tree.items() if name != "groups"}
  return rest | {
    f"group_{n}": jax.tree.map(lambda leaf, n=n: leaf[n], tree["groups"]) for n in range(num_groups(model))}
