"""The training plan: which tokens stand in each row of an update, as a pure function of config, step and row.

No state is kept between updates, so a run can resume at any step, on any number of hosts, with the same stream.

A *piece* is a stretch of one document that a row reads without a break. Its first input is eos, its positions start at
0, and its id differs from that of the previous piece in the row, which makes a memory layer start afresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lattice_jax.config import DataConfig
from lattice_jax.data.hashing import permutation, permuted
from lattice_jax.data.source import Source

_DOCUMENTS, _WINDOWS = 0, 1  # keys of the two permutations of an epoch
_MAX_ID = 2**31


class Placement(NamedTuple):
  """Where the targets of some rows of an update come from.

  index_BT: int64, index of the target in `source.tokens`; its document is `source.document_of(index_BT)`.
  positions_BT: int32, distance from the start of the piece.
  ids_BT: int32 ≥ 0, the piece.
  """

  index_BT: np.ndarray
  positions_BT: np.ndarray
  ids_BT: np.ndarray

  @property
  def reset_BT(self) -> np.ndarray:
    """True at the first token of every piece."""
    return self.positions_BT == 0


@dataclass(frozen=True)
class Concatenation:
  """Pieces of a source end to end: piece k is source tokens [begins[k], begins[k] + starts[k + 1] − starts[k])."""

  begins: np.ndarray
  starts: np.ndarray

  @classmethod
  def of(cls, begins: np.ndarray, lengths: np.ndarray) -> Concatenation:
    return cls(begins=begins, starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

  def locate(self, address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The piece and the source index at each address."""
    piece = np.searchsorted(self.starts, address, side="right") - 1
    return piece, self.begins[piece] + address - self.starts[piece]


class Plan:
  """The order in which training reads a source: one of three, which `data.rows` names.

  sequences: the concatenated documents are cut into sequences of seq_len tokens, in a new order every epoch. Every
    sequence is one piece. The tail of the corpus that fills no sequence is never read.
  packed: every epoch concatenates the documents in a new order and cuts them into rows of seq_len tokens, which are
    then shuffled. A document that is cut at the end of a row continues in another row as a new piece. The tail of an
    epoch that fills no row is dropped.
  documents: every epoch concatenates the documents in a new order, and row r reads the r-th of `batch` equal lanes, so
    that the memory is carried along a whole document. Fewer than `batch` tokens of an epoch are dropped, and at most
    one document per row is cut, where the row's lane begins.
  """

  def __init__(self, data: DataConfig, source: Source):
    self._data = data
    self._offsets = source.offsets
    self._num_tokens = len(source.tokens)
    self._orders: dict[int, Concatenation] = {}
    self._place = {
      "sequences": self._place_sequences, "packed": self._place_packed, "documents": self._place_documents}[data.rows]
    needed = data.batch if data.rows == "documents" else data.seq_len
    if self._num_tokens < needed:
      field = "batch" if data.rows == "documents" else "seq_len"
      raise ValueError(
        f"data.{field}={needed} is more than the {self._num_tokens} tokens of {source.name} {source.split}; "
        f"use at most {self._num_tokens}, or a larger data.source.")

  @property
  def updates_per_sequence(self) -> int:
    return self._data.seq_len // self._data.update_len

  def place(self, step: int, first_row: int, last_row: int) -> Placement:
    """Rows [first_row, last_row) of update `step`."""
    return self._place(step, np.arange(first_row, last_row, dtype=np.int64))

  def _place_sequences(self, step: int, rows_B: np.ndarray) -> Placement:
    group, inside_T = self._inside_sequence(step)
    start_B = np.empty_like(rows_B)
    for _, windows, part in self._windows(group, rows_B):
      start_B[part] = windows * self._data.seq_len
    shape = (len(rows_B), len(inside_T))
    return Placement(
      index_BT=start_B[:, None] + inside_T,
      positions_BT=np.broadcast_to(inside_T.astype(np.int32), shape),
      ids_BT=np.full(shape, group % _MAX_ID, np.int32))

  def _place_packed(self, step: int, rows_B: np.ndarray) -> Placement:
    group, inside_T = self._inside_sequence(step)
    parts = []
    for epoch, windows, _ in self._windows(group, rows_B):
      joined = self._order(epoch)
      start_B = windows * self._data.seq_len
      first_piece_B, _ = joined.locate(start_B)
      # A row has at most seq_len pieces, so ids differ within the row and between successive groups.
      id_base_B = group * self._data.seq_len - first_piece_B
      parts.append(_pieces(joined, start_B[:, None] + inside_T, start_B[:, None], id_base_B[:, None]))
    return _join(parts, axis=0)

  def _place_documents(self, step: int, rows_B: np.ndarray) -> Placement:
    lane_len = self._num_tokens // self._data.batch
    start_B = rows_B * lane_len
    along_T = step * self._data.update_len + np.arange(self._data.update_len, dtype=np.int64)
    parts = []
    for epoch in range(along_T[0] // lane_len, along_T[-1] // lane_len + 1):
      inside_T = along_T[along_T // lane_len == epoch] - epoch * lane_len
      id_base = epoch * (len(self._offsets) - 1)
      parts.append(_pieces(self._order(epoch), start_B[:, None] + inside_T, start_B[:, None], id_base))
    return _join(parts, axis=1)

  def _inside_sequence(self, step: int) -> tuple[int, np.ndarray]:
    """The sequence group of an update, and the offsets of its tokens in the sequence."""
    group, update = divmod(step, self.updates_per_sequence)
    return group, update * self._data.update_len + np.arange(self._data.update_len, dtype=np.int64)

  def _windows(self, group: int, rows_B: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The shuffled sequences that the rows of a group read: (epoch, numbers of the sequences, mask of the rows)."""
    per_epoch = self._num_tokens // self._data.seq_len
    example_B = group * self._data.batch + rows_B
    epoch_B = example_B // per_epoch
    for epoch in range(epoch_B[0], epoch_B[-1] + 1):
      part = epoch_B == epoch
      yield epoch, permuted(example_B[part] - epoch * per_epoch, per_epoch, self._data.seed, epoch, _WINDOWS), part

  def _order(self, epoch: int) -> Concatenation:
    """The documents of an epoch, concatenated in its order."""
    if epoch not in self._orders:
      order = permutation(len(self._offsets) - 1, self._data.seed, epoch, _DOCUMENTS)
      joined = Concatenation.of(self._offsets[order], np.diff(self._offsets)[order])
      # Threads may read both sides of an epoch's end; replacing the whole dict keeps them from interfering.
      self._orders = {**{e: kept for e, kept in self._orders.items() if abs(e - epoch) < 3}, epoch: joined}
      return joined
    return self._orders[epoch]


def _pieces(
    joined: Concatenation, address_BT: np.ndarray, cold_start: np.ndarray, id_base: np.ndarray | int) -> Placement:
  """Pieces begin where documents begin, and at `cold_start`."""
  piece_BT, index_BT = joined.locate(address_BT)
  return Placement(
    index_BT=index_BT,
    positions_BT=(address_BT - np.maximum(joined.starts[piece_BT], cold_start)).astype(np.int32),
    ids_BT=((id_base + piece_BT) % _MAX_ID).astype(np.int32))


def _join(parts: list[Placement], axis: int) -> Placement:
  return Placement(*(np.concatenate(arrays, axis) for arrays in zip(*parts, strict=True)))
