"""Prepared corpora: a flat file of tokens that `scripts/prepare_data.py` makes once."""

from __future__ import annotations

from lattice_jax.config import DataConfig
from lattice_jax.data.files import prepare_command
from lattice_jax.data.source import Source


def read_corpus(data: DataConfig, split: str) -> Source:
  """The prepared split. Raises ValueError where it has not been prepared."""
  raise ValueError(
    f"{data.source} ({split}) is not under {data.path}; run `{prepare_command(data.path, data.source)}`.")
