"""A running summary of the tokens that leave a cache: every eviction is handed to the cache's fold, if it has one.

A fold is static and its summary part of the cache's state, so any call may split the tokens anywhere. It takes each
token once, when it leaves, in no promised order; a document that ends takes its summary with it.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax

from lattice_jax.ops.documents import select


@flax.struct.dataclass
class Evicted:
  """Tokens that leave where `leaves_BHS`; the others are to be ignored, whatever they hold.

  key_BHSK, value_BHSV: as they were cached. position_BHS: which token of its document each is.
  query_BHSGK: for folds that fit themselves to queries, those of the G heads that share the key: of the token that
    arrived as this one left (or of this one itself, where a cache keeps these); None where the cache hands none over.
  """

  key_BHSK: jax.Array
  value_BHSV: jax.Array
  position_BHS: jax.Array
  leaves_BHS: jax.Array
  query_BHSGK: jax.Array | None = None


@runtime_checkable
class Fold(Protocol):
  """A hashable summary rule."""

  def init_summary(self, batch: int, heads: int, key_dim: int, value_dim: int) -> Any:
    """The summary of no tokens: arrays with rows in front."""

  def add(self, summary: Any, evicted: Evicted) -> Any:
    """The summary with those tokens, of the same structure, shapes and dtypes."""


def fold_in(fold: Fold, summary: Any, evicted: Evicted, is_new_B: jax.Array) -> Any:
  """The summary of one layer after tokens have left; of a row whose document is new, of these tokens alone."""
  batch, heads, _, key_dim = evicted.key_BHSK.shape
  empty = fold.init_summary(batch, heads, key_dim, evicted.value_BHSV.shape[-1])
  return fold.add(select(is_new_B, empty, summary), evicted)
