"""The config as a locked ConfigDict, which the files in `configs/` edit. Needs no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from lattice_jax.config import Config


class Section(ml_collections.ConfigDict):
  """A ConfigDict in which assigning to a section updates the section instead of replacing it.

  `config.model.vq = {"codes": 128}` changes one field, as `config.model.vq.update(…)` does. Replacing the section would
  reset its other fields to their defaults, whatever the experiment had set before.
  """

  def __setitem__(self, key: str, value: Any) -> None:
    is_section = key in self and isinstance(self[key], ml_collections.ConfigDict)
    if is_section and isinstance(value, (Mapping, ml_collections.ConfigDict)):
      self[key].update(value)
    else:
      super().__setitem__(key, value)


def default_config() -> ml_collections.ConfigDict:
  """Every field with its default; assigning to a misspelt field raises."""
  return _as_config_dict(Config()).lock()


def _as_config_dict(value: Any) -> Section:
  return Section({
    field.name: _as_config_dict(part) if dataclasses.is_dataclass(part := getattr(value, field.name)) else part
    for field in dataclasses.fields(value)})
