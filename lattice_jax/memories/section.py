"""What a memory's folder says of its part of the config; needs no JAX, so that `--help` and sweeps read it quickly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
  """The section `model.<name>` of the config.

  config: its frozen dataclass. doc: what it describes, as `--help` prints it.
  smoke: takes the section and gives the fields to change, and their values, for a model that trains in seconds on a CPU
    with the same features switched on.
  published: takes a memory of the section and its config, and gives the fields as the published layer has them, which
    `faithful` needs; None of memories that have no such field.
  """

  name: str
  config: type
  doc: str
  smoke: Callable[[Any], dict[str, Any]]
  published: Callable[[str, Any], dict[str, Any]] | None = None


def check_heads(section: str, heads: int, kv_heads: int) -> None:
  """Raises ValueError where query heads cannot share the key/value heads evenly."""
  if heads % kv_heads:
    raise ValueError(f"{section}.heads={heads} must be a multiple of {section}.kv_heads={kv_heads}.")
