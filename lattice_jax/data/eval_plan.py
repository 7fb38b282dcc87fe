"""The rows in which evaluation reads a whole split, so that every token is a target exactly once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lattice_jax.data.plan import Concatenation, Placement


@dataclass(frozen=True)
class RowGroup:
  """Rows that are read in parallel, all from a fresh memory; each holds zero or more pieces end to end.

  ids, documents: one per piece. row_starts: [rows + 1] addresses in `joined` where the rows begin.
  """

  joined: Concatenation
  ids: np.ndarray
  documents: np.ndarray
  row_starts: np.ndarray

  def num_chunks(self, chunk_len: int) -> int:
    """The number of chunks until every row is finished; the same on all hosts."""
    return -(-int(np.diff(self.row_starts).max()) // chunk_len)

  def chunk(self, number: int, chunk_len: int) -> tuple[Placement, np.ndarray]:
    """Tokens [number · chunk_len, + chunk_len) of all rows and the document of each, −1 after the end of its row.

    After its end a row is padded with its last token, under the same id.
    """
    start_B1, stop_B1 = self.row_starts[:-1, None], self.row_starts[1:, None]
    along_T = number * chunk_len + np.arange(chunk_len, dtype=np.int64)
    address_BT = np.clip(np.minimum(start_B1 + along_T, stop_B1 - 1), 0, self.row_starts[-1] - 1)
    piece_BT, index_BT = self.joined.locate(address_BT)
    placement = Placement(
      index_BT=index_BT,
      positions_BT=(address_BT - self.joined.starts[piece_BT]).astype(np.int32),
      ids_BT=self.ids[piece_BT].astype(np.int32))
    return placement, np.where(start_B1 + along_T < stop_B1, self.documents[piece_BT], -1)


def cold_groups(offsets: np.ndarray, seq_len: int, batch: int) -> Iterator[RowGroup]:
  """Windows of at most seq_len tokens of one document, one in each row; the longest first, for the least padding."""
  per_document = -(-np.diff(offsets) // seq_len)
  document = np.repeat(np.arange(len(per_document)), per_document)
  nth = np.arange(len(document)) - np.repeat(np.cumsum(per_document) - per_document, per_document)
  begins = offsets[document] + nth * seq_len
  lengths = np.minimum(offsets[document + 1] - begins, seq_len)
  order = np.argsort(-lengths, kind="stable")
  for first in range(0, len(order), batch):
    windows = order[first:first + batch]
    joined = Concatenation.of(begins[windows], lengths[windows])
    empty_rows = np.full(batch - len(windows), joined.starts[-1])
    yield RowGroup(
      joined, ids=np.arange(first, first + len(windows)), documents=document[windows],
      row_starts=np.append(joined.starts, empty_rows))


def carried_group(offsets: np.ndarray, batch: int) -> RowGroup:
  """Whole documents: each, the longest first, goes to the row that is the shortest so far."""
  lengths = np.diff(offsets)
  rows: list[list[int]] = [[] for _ in range(batch)]
  shortest = [(0, row) for row in range(batch)]
  for document in np.argsort(-lengths, kind="stable").tolist():
    length, row = heapq.heappop(shortest)
    rows[row].append(document)
    heapq.heappush(shortest, (length + int(lengths[document]), row))
  order = np.array([document for row in rows for document in row], np.int64)
  joined = Concatenation.of(offsets[order], lengths[order])
  return RowGroup(
    joined, ids=order, documents=order, row_starts=joined.starts[np.cumsum([0, *map(len, rows)])])
