"""Fields of the GRU with diagonal recurrence, `model.gru`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import choice, positive
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.memories.section import Section

FORMS = ("auto", "scan", "newton")


@dataclass(frozen=True)
class GRUConfig(RecurrentConfig):
  """ParaGRU (arXiv 2510.21450): a head's state is value_dim numbers, which do not see one another."""

  form: str = choice(
    "auto", FORMS, "scan: token by token; newton: a chunk of tokens at once, by Newton's method; auto: the quicker of "
    "them on this backend, where it was measured. All are exact")
  chunk_len: int = positive(
    32, "tokens solved at once by \"newton\", and whose gradients are made at once by \"scan\"; changes cost, not "
    "results")
  rounds: int = positive(16, "of \"newton\", at most; a chunk that is not solved by then is taken token by token")
  tolerance: float = positive(1e-6, "of \"newton\": rounds end once they move states by less")


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "value_dim": 16, "chunk_len": 8}


SECTION = Section("gru", GRUConfig, "the memory \"gru\"", _smoke)
