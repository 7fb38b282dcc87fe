"""The fields that all recurrent memories share."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lattice_jax.fields import at_least, positive, switch


@dataclass(frozen=True)
class RecurrentConfig:
  """A recurrent memory. `value_dim` is per head."""

  heads: int = positive(4, "each with a state of its own")
  value_dim: int = positive(32, "of a head's values")
  conv_width: int = at_least(0, 4, "taps of the causal convolutions over queries, keys and values; 0 = none")
  norm_eps: float = positive(1e-6, "added to the mean square of a head's output, by whose root that is divided")
  gated: bool = switch(True, "gate on the output, SiLU where the memory has none of its own")


@dataclass(frozen=True)
class PublishedConfig(RecurrentConfig):
  """A recurrent memory that others have published as a layer of its own frame."""

  faithful: bool = switch(
    False, "the layer as it was published in place of our frame, by the README of the memory's folder; the other "
    "fields must be such as that layer has")


@dataclass(frozen=True)
class MatrixConfig(PublishedConfig):
  """A published memory of one matrix a head, with what Lattice has and it lacks as ablations."""

  learned_start: bool = switch(False, "documents begin with a learned matrix, as Lattice's do, not with an empty one")
  unit_values: bool = switch(False, "values of length one, as Lattice's")


# What no published layer of a matrix has.
NO_ABLATION = MappingProxyType({"learned_start": False, "unit_values": False})


def check_faithful(section: str, memory: str, config: PublishedConfig, wanted: dict[str, Any]) -> None:
  """Raises ValueError where a faithful layer is asked for what the published one does not have.

  wanted: fields as the published layer has them; those that it leaves open are as in the config, or missing.
  """
  unlike = {field: value for field, value in wanted.items() if getattr(config, field) != value}
  if config.faithful and unlike:
    given = " and ".join(f"{field}={getattr(config, field)}" for field in unlike)
    has = " and ".join(f"model.{section}.{field}={value}" for field, value in unlike.items())
    raise ValueError(
      f"model.{section}.faithful=True makes the layer {memory!r} as it was published, which has no {given}; set {has}, "
      f"or model.{section}.faithful=False for {given}.")
