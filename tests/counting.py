"""How many parameters a model has, without tracing what a model of that size runs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from lattice_jax.config import ModelConfig
from lattice_jax.models.decoder import abstract_variables
from lattice_jax.models.parameters import count_parameters


def shapes(model: ModelConfig) -> dict[str, Any]:
  """Of all variables, by collection.

  They are those of the form that is traced fastest: L8 of the contract runs each memory's forms on the same variables.
  """
  return abstract_variables(dataclasses.replace(model, impl="reference", remat="none"))


@functools.cache
def parameters(model: ModelConfig) -> int:
  """Numbers that are trained."""
  return count_parameters(shapes(model)["params"])
