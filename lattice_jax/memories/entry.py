"""What every memory layer does first with its arguments: what was left out is filled in, what cannot fit is refused."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax

from lattice_jax.fields import check_fields
from lattice_jax.ops.calls import check_state
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.types import Segment, whole_segment


def enter_layer(layer: nn.Module, x_BTD: jax.Array, state: Any, segment: Segment | None) -> tuple[Any, Segment]:
  """The state and segment of a layer's call: where both are None, an empty memory and one document a row.

  Raises:
    ValueError: x, the segment or the state has a wrong rank or size, or a field of the config is out of range.
  """
  name = type(layer).__name__
  check_fields(layer.config, f"{type(layer.config).__name__}.")
  if x_BTD.ndim != 3:
    raise ValueError(
      f"{name} was given x of shape {x_BTD.shape}, and takes [batch, tokens, width]; x[None] is one row, x[:, None] "
      "one token of every row.")
  batch, length, width = x_BTD.shape
  made_for = _width(layer)
  if made_for is not None and width != made_for:
    raise ValueError(
      f"{name} was given x of width {width}, and its parameters were made for {made_for}; project x to {made_for}, or "
      "make parameters for it with `init`.")
  if segment is None and state is not None:
    raise ValueError(
      f"{name} was given a state and no segment; give segment=whole_segment({batch}, {length}, start=…), where start "
      "is the number of tokens that the state has read.")
  segment = whole_segment(batch, length) if segment is None else segment
  for field, array in vars(segment).items():
    if array.shape != (batch, length):
      raise ValueError(
        f"{name} was given x of shape {x_BTD.shape} and a segment whose {field} has shape {array.shape}; it must be "
        f"{(batch, length)}, as whole_segment({batch}, {length}) has it.")
  if state is None:
    return layer.init_state(batch), segment
  check_state(
    name, state, jax.eval_shape(functools.partial(layer.init_state, batch)),
    f"start with state=None or init_state({batch}), or go on with the state that the last call returned")
  return state, segment


def _width(layer: nn.Module) -> int | None:
  """The width of x that the layer's parameters were made for; None before there are any."""
  if not layer.has_variable("params", "query"):
    return None
  weight = layer.get_variable("params", "query")
  if isinstance(weight, StoredWeight):
    return weight.code_NK.shape[1]
  return (weight.value if isinstance(weight, nn.meta.AxisMetadata) else weight).shape[0]
