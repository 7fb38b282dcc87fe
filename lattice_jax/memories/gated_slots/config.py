"""Fields of gated slot attention, `model.gated_slots`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import positive
from lattice_jax.memories.recurrent_config import PublishedConfig, check_faithful
from lattice_jax.memories.section import Section

NORM_EPS = 1e-5  # of the published layer, which does not hand its argument `norm_eps` on


@dataclass(frozen=True)
class GatedSlotsConfig(PublishedConfig):
  """A head's state is slots × (key_dim + value_dim)."""

  key_dim: int = positive(32, "of a head's queries and keys")
  slots: int = positive(16, "of a head, each a key and a value")
  chunk_len: int = positive(16, "tokens taken at a time; changes cost, not results")


def published(memory: str, config: Any) -> dict[str, Any]:
  """Fields as the published layer has them."""
  del memory, config
  return {"gated": False, "norm_eps": NORM_EPS}


def check(config: GatedSlotsConfig) -> None:
  """Raises ValueError where the published layer is asked for with what it has not."""
  check_faithful("gated_slots", "gated_slots", config, published("gated_slots", config))


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "key_dim": 16, "value_dim": 16, "slots": 8, "chunk_len": 8}


SECTION = Section("gated_slots", GatedSlotsConfig, "the memory \"gated_slots\"", _smoke, published)
