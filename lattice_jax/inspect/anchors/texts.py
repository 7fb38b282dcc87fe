"""Rows of tokens with their anchors: windows of a held-out text, and prompts whose answers count."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.data.source import Source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.marks import Marker, mark_tokens, nothing_read
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.memories.anchor.places import Places, find_places
from lattice_jax.memories.anchor.state import empty_cache
from lattice_jax.types import Batch, Segment, make_segment

_UNIT = 64  # rows have a multiple of so many tokens, so that few programs are compiled


@dataclass(frozen=True, eq=False)
class Row:
  """A text; an end-of-text token is read before it. asked: [start, stop) of the tokens that count.

  marks: of every token; None: those of the model's own rule.
  """

  ids: np.ndarray
  asked: tuple[int, int]
  marks: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Spots:
  """Where each target of a batch stands, [B, T].

  segment_BT: anchors before it. place_BT: tokens of its own segment before it. is_anchor_BT: forced ones included.
  """

  segment_BT: np.ndarray
  place_BT: np.ndarray
  is_anchor_BT: np.ndarray


def windows(source: Source, length: int, count: int) -> np.ndarray:
  """[B, T] tokens of `count` windows of one document each, or of all if there are fewer; evenly spread.

  Raises:
    ValueError: no document is as long as a window, or the tokens are no text.
  """
  if source.unit != "byte" or source.answers is not None:
    raise ValueError(
      f"data.source={source.name} is no text; choose one that is, such as --set=data.source=books_sample.")
  per_document = np.diff(source.offsets) // length
  total = int(per_document.sum())
  if not total:
    raise ValueError(
      f"no document of {source.name} has {length:,} tokens; the longest has {int(np.diff(source.offsets).max()):,}: "
      "use a smaller --seq_len or --context.")
  chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
  first = np.cumsum(per_document) - per_document
  document = np.searchsorted(np.cumsum(per_document), chosen, side="right")
  start_B = source.offsets[document] + (chosen - first[document]) * length
  return np.asarray(source.tokens[start_B[:, None] + np.arange(length)]).astype(np.int32)


def window_rows(ids_BT: np.ndarray) -> list[Row]:
  return [Row(ids_T, (0, len(ids_T))) for ids_T in ids_BT]


def to_batch(rows: Sequence[Row], tokenizer: Tokenizer, marker: Marker | None) -> Batch:
  """Inputs begin with the end-of-text token; the answers alone have weight."""
  length = -(-max(len(row.ids) for row in rows) // _UNIT) * _UNIT
  if all(len(row.ids) == len(rows[0].ids) for row in rows):
    length = len(rows[0].ids)

  def pad(x_BT: list[np.ndarray], value: int, dtype: type) -> np.ndarray:
    return np.stack([np.pad(x_T, (0, length - len(x_T)), constant_values=value) for x_T in x_BT]).astype(dtype)

  targets_BT = pad([row.ids for row in rows], tokenizer.pad_id, np.int32)
  tokens_BT = np.concatenate([np.full((len(rows), 1), tokenizer.eos_id, np.int32), targets_BT[:, :-1]], axis=1)
  valid_BT = pad([np.ones(len(row.ids)) for row in rows], 0, bool)
  weights_BT = np.zeros(targets_BT.shape, np.float32)
  for row, weights_T in zip(rows, weights_BT, strict=True):
    weights_T[slice(*row.asked)] = 1
  marks_BT = _marks(rows, tokens_BT, marker)
  positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), targets_BT.shape)
  return Batch(
    tokens_BT=np.where(valid_BT, tokens_BT, tokenizer.pad_id).astype(np.int32), targets_BT=targets_BT,
    weights_BT=weights_BT, sequence=np.zeros((), np.int32), segment=make_segment(
      np.ascontiguousarray(positions_BT), valid_BT=valid_BT, marks_BT=np.where(valid_BT, marks_BT, 0).astype(np.int8)))


def _marks(rows: Sequence[Row], tokens_BT: np.ndarray, marker: Marker | None) -> np.ndarray:
  positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
  marks_BT = np.zeros(tokens_BT.shape, np.int8) if marker is None else mark_tokens(
    marker, tokens_BT, nothing_read(marker, len(rows)), positions_BT)
  for row, marks_T in zip(rows, marks_BT, strict=True):
    if row.marks is not None:
      marks_T[:] = 0
      # the input after the end-of-text token is the row's first
      marks_T[1:len(row.ids)] = row.marks[:-1]
  return marks_BT


def spots(model: ModelConfig, batch: Batch, marker: Marker | None) -> Spots:
  """As the memory itself counts: a target is the next input, so one more token is looked at than is read."""
  tokens_BS = np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1)
  positions_BS = np.broadcast_to(np.arange(tokens_BS.shape[1], dtype=np.int32), tokens_BS.shape)
  last_BS = np.zeros(tokens_BS.shape, np.int8) if marker is None else mark_tokens(
    marker, tokens_BS, nothing_read(marker, len(tokens_BS)), positions_BS)
  marks_BS = np.concatenate([batch.segment.marks_BT, last_BS[:, -1:]], axis=1)
  places = jax.device_get(places_of(model.anchor, make_segment(np.ascontiguousarray(positions_BS), marks_BT=marks_BS)))
  place_BS = np.arange(tokens_BS.shape[1]) - places.start_BT
  return Spots(
    segment_BT=places.passed_BT[:, 1:], place_BT=place_BS[:, 1:], is_anchor_BT=places.is_anchor_BT[:, 1:])


@functools.partial(jax.jit, static_argnums=0)
def places_of(config: AnchorConfig, segment: Segment) -> Places:
  """Of texts that begin here."""
  batch = segment.positions_BT.shape[0]
  nothing = empty_cache(config, batch, 0, heads=1, key_dim=1, value_dim=1, dtype=jnp.dtype("float32"))
  return find_places(config, nothing, segment)
