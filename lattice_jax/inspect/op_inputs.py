"""What the layers of a model hand to their attention while it reads a text."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inspect.slot_inputs import unstack
from lattice_jax.models.decoder import Decoder, init_state
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


def op_inputs(sown: Any, model: ModelConfig, layer: int) -> dict[str, jax.Array]:
  """Of one layer: queries and keys with their positions [B, T, …], and what else it reports."""
  group, block = divmod(layer, len(model.pattern))
  (inputs,) = sown[f"group_{group}"][f"block_{block}"]["memory"]["op_inputs"]
  return inputs
