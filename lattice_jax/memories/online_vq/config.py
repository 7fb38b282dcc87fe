"""Fields of online vector-quantised attention, `model.online_vq`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import choice, positive, within
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.memories.section import Section

GROWTHS = ("plateau", "full")
MOST_CODES = 2**15  # whose square is an int32


@dataclass(frozen=True)
class OnlineVQConfig(RecurrentConfig):
  """A head's state is codes × (key_dim + value_dim + 1), and the keys and values of the open chunk."""

  key_dim: int = positive(32, "of a head's queries and keys")
  codes: int = within(1, MOST_CODES, 64, "of a head's dictionary, each a mean key, a mean value and a count")
  chunk_len: int = positive(32, "tokens that see one another as they are, then join the dictionary; changes results")
  growth: str = choice(
    "plateau", GROWTHS, "codes after t tokens: t codes/(t + codes), as in the paper, or all t until the codes are full")


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "key_dim": 16, "value_dim": 16, "codes": 8, "chunk_len": 8}


SECTION = Section("online_vq", OnlineVQConfig, "the memory \"online_vq\"", _smoke)
