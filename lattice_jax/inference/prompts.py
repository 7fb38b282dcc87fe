"""Prompts: rows of ids of any length, padding removed, checked, and cut into chunks for the prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lattice_jax.types import Segment, make_segment


def unpad(tokens_BT: np.ndarray, valid_BT: np.ndarray) -> list[np.ndarray]:
  """The rows of a batch that was padded on the left, on the right, or on both sides.

  Raises:
    ValueError: the shapes differ, or padding stands between two tokens of a row.
  """
  tokens_BT, valid_BT = np.asarray(tokens_BT), np.asarray(valid_BT, bool)
  if tokens_BT.ndim != 2 or tokens_BT.shape != valid_BT.shape:
    raise ValueError(f"tokens {tokens_BT.shape} and their mask {valid_BT.shape} must be alike, rows by tokens.")
  rows = []
  for index, (row, valid) in enumerate(zip(tokens_BT, valid_BT, strict=True)):
    places = np.flatnonzero(valid)
    if places.size and places[-1] - places[0] + 1 != places.size:
      raise ValueError(f"row {index} has padding between its tokens; pad it on the left or on the right.")
    rows.append(row[valid])
  return rows


def prompt_rows(prompts: Sequence[Any], start_ids: tuple[int, ...], vocab: int) -> list[np.ndarray]:
  """Each prompt behind `start_ids`.

  Raises:
    ValueError: there is no prompt, a row would be empty, or a row holds an id outside the vocabulary.
  """
  if len(prompts) == 0:
    raise ValueError("generation needs at least one prompt; an empty prompt [] starts a new document.")
  rows = [np.asarray([*start_ids, *prompt], np.int64) for prompt in prompts]
  for index, row in enumerate(rows):
    if not row.size:
      raise ValueError(
        f"the prompt of row {index} is empty, and this model starts a text with no token of its own; give a prompt.")
    outside = row[(row < 0) | (row >= vocab)]
    if outside.size:
      raise ValueError(
        f"the prompt of row {index} holds token {outside[0]}, outside the vocabulary of {vocab}; its tokenizer is not "
        "the model's.")
  return [row.astype(np.int32) for row in rows]


def check_room(rows: list[np.ndarray], limit: int | None) -> None:
  """Raises ValueError if a prompt leaves no room for a token of text; `limit` counts prompt and text."""
  longest = max(range(len(rows)), key=lambda index: len(rows[index]))
  if limit is not None and len(rows[longest]) >= limit:
    raise ValueError(
      f"the prompt of row {longest} has {len(rows[longest]):,} tokens, and the context holds {limit:,} of prompt and "
      "text together; shorten the prompt.")


def prompt_chunk(rows: list[np.ndarray], start: int, chunk_len: int) -> tuple[np.ndarray, Segment]:
  """Tokens [start, start + chunk_len) of every row; those beyond the end of a row are invalid."""
  tokens_BT = np.zeros((len(rows), chunk_len), np.int32)
  valid_BT = np.zeros((len(rows), chunk_len), bool)
  for index, row in enumerate(rows):
    piece = row[start:start + chunk_len]
    tokens_BT[index, :len(piece)] = piece
    valid_BT[index, :len(piece)] = True
  positions_BT = np.tile(np.arange(start, start + chunk_len, dtype=np.int32), (len(rows), 1))
  return tokens_BT, make_segment(positions_BT, valid_BT=valid_BT)
