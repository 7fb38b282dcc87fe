"""Prompts: rows of ids of any length, padding removed, checked, and cut into chunks for the prefill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lattice_jax.types import MARK_PROTECTED, Segment, make_segment

Spans = Sequence[tuple[int, int]]  # (start, stop) of some tokens of a row


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


def protected_rows(rows: Sequence[np.ndarray], spans: Sequence[Spans], room: int) -> list[np.ndarray]:
  """Of every row whether each token lies in one of its spans; empty without spans.

  room: protected tokens that the model's memories can hold.

  Raises:
    ValueError: a span lies outside its row, spans hold more tokens than there is room for, or are for another
      number of rows.
  """
  if not spans:
    return []
  if len(spans) != len(rows):
    raise ValueError(
      f"protected spans were given for {len(spans)} of {len(rows)} prompts; give each its list, which may be empty.")
  result = [np.zeros(len(row), bool) for row in rows]
  for index, (is_protected, own) in enumerate(zip(result, spans, strict=True)):
    for start, stop in own:
      if not 0 <= start < stop <= len(is_protected):
        raise ValueError(
          f"the protected span [{start}, {stop}) of row {index} lies outside its prompt of {len(is_protected)} tokens; "
          "give start and stop with 0 ≤ start < stop ≤ that.")
      is_protected[start:stop] = True
    if is_protected.sum() > room:
      raise ValueError(
        f"the protected spans of row {index} hold {is_protected.sum()} tokens, and the model's memories have room for "
        f"{room} (model.anchor.protected of the memory 'anchor'; others protect none); set it to at least as many.")
  return result


def prompt_chunk(
  rows: list[np.ndarray], start: int, chunk_len: int, protected: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, Segment]:
  """Tokens [start, start + chunk_len) of every row; those beyond the end of a row are invalid.

  protected: of every row which tokens are marked so; none where it is empty.
  """
  tokens_BT = np.zeros((len(rows), chunk_len), np.int32)
  valid_BT = np.zeros((len(rows), chunk_len), bool)
  for index, row in enumerate(rows):
    piece = row[start:start + chunk_len]
    tokens_BT[index, :len(piece)] = piece
    valid_BT[index, :len(piece)] = True
  positions_BT = np.tile(np.arange(start, start + chunk_len, dtype=np.int32), (len(rows), 1))
  marks_BT = np.zeros((len(rows), chunk_len), np.int8)
  for index, is_protected in enumerate(protected):
    piece = is_protected[start:start + chunk_len]
    marks_BT[index, :len(piece)] = MARK_PROTECTED * piece
  return tokens_BT, make_segment(positions_BT, valid_BT=valid_BT, marks_BT=marks_BT)
