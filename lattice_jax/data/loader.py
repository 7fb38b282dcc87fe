"""Batches of NumPy arrays: for training by Grain, addressed by step; for evaluation, every token of a split once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from absl import flags

from lattice_jax.config import Config
from lattice_jax.data.anchors import make_marker
from lattice_jax.data.eval_plan import carried_group, cold_groups
from lattice_jax.data.plan import Placement, Plan
from lattice_jax.data.sources import Source
from lattice_jax.data.tokenizers.tokenizer import Tokenizer, get_tokenizer
from lattice_jax.data.training_marks import TrainingMarks
from lattice_jax.marks import Marker, mark_tokens
from lattice_jax.types import Batch, make_segment

_MAX_STEPS = 2**31 - 1
_PROTOCOLS = ("cold", "carried")


@dataclass(frozen=True)
class EvalBatch:
  """A chunk of an evaluation.

  batch: this host's rows.
  positions_BT, documents_BT: of the targets in the rows of all hosts, so that every host can compute the whole result;
    the document is −1 where no target counts.
  fresh: whether the memory starts anew instead of continuing from the previous chunk.
  """

  batch: Batch
  positions_BT: np.ndarray
  documents_BT: np.ndarray
  fresh: bool


class UpdateReader:
  """One host's rows of every update, as a random-access data source whose item `step` is the `Batch` of that update."""

  def __init__(
      self, plan: Plan, source: Source, eos_id: int, rows: tuple[int, int], marks: TrainingMarks | None = None):
    self._plan = plan
    self._source = source
    self._eos_id = eos_id
    self._rows = rows
    self._marks = marks

  def __len__(self) -> int:
    return _MAX_STEPS

  def __getitem__(self, step: int) -> Batch:
    placement = self._plan.place(int(step), *self._rows)
    if self._marks is not None:
      placement = self._marks.placed(int(step), self._rows, placement)
    group = int(step) // self._plan.updates_per_sequence
    batch = _read(
      self._source, placement, eos_id=self._eos_id, sequence=group, marker=self._marks and self._marks.marker)
    if self._marks is None:
      return batch
    marks_BT = self._marks.of_update(int(step), self._rows, batch.segment)
    return batch.replace(segment=batch.segment.replace(marks_BT=marks_BT))

  def __repr__(self) -> str:
    return f"UpdateReader({self._source!r}, rows={self._rows})"


def train_batches(
    config: Config, source: Source, *, start_step: int, host: int = 0, num_hosts: int = 1) -> Iterator[Batch]:
  """This host's rows of updates start_step, start_step + 1, … without end, prefetched.

  Threads and `data.workers` processes give the same stream.
  """
  import grain  # a quarter of a second, which nothing but training has to wait for

  rows = host_rows(config.data.batch, host, num_hosts)
  tokenizer = get_tokenizer(config.data)
  marker = make_marker(config.data.anchors, tokenizer)
  reader = UpdateReader(
    Plan(config.data, source), source, tokenizer.eos_id, rows, marker and TrainingMarks(config.data, marker))
  updates = grain.MapDataset.source(reader).slice(slice(start_step, None))
  if config.data.workers == 0:
    # Two threads are faster than any model; more would take cores from it.
    return iter(updates.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's workers read flags, which only absl.app parses.
  reading = updates.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
  return iter(reading.mp_prefetch(grain.MultiprocessingOptions(
    num_workers=config.data.workers, per_worker_buffer_size=4)))


def eval_batches(
    source: Source, tokenizer: Tokenizer, *, protocol: str, seq_len: int, chunk_len: int, batch: int,
    marker: Marker | None = None, host: int = 0, num_hosts: int = 1) -> Iterator[EvalBatch]:
  """Every token of the split as a target exactly once, with weight 1, or 0 if it is not an answer of a task.

  A chunk has [batch / num_hosts, chunk_len] tokens; chunk_len 0 means seq_len.

  cold: windows of at most seq_len tokens of one document, each from a fresh memory and with eos as its first input.
  carried: whole documents, one after another in each row, with the memory carried along. With fewer documents than
    rows, the other rows stay empty, so a larger batch only costs time.

  Valid tokens are a prefix of every row of every chunk. Every host gets the same number of chunks. marker: says which
  tokens are anchors; none are without one.
  """
  if protocol not in _PROTOCOLS:
    raise ValueError(f"the evaluation protocol {protocol!r} is not one of {', '.join(_PROTOCOLS)}.")
  first, last = host_rows(batch, host, num_hosts)
  chunk_len = chunk_len or seq_len
  groups = (
    cold_groups(source.offsets, seq_len, batch) if protocol == "cold" else [carried_group(source.offsets, batch)])
  for sequence, group in enumerate(groups):
    for number in range(group.num_chunks(chunk_len)):
      placement, documents_BT = group.chunk(number, chunk_len)
      own = Placement(*(array_BT[first:last] for array_BT in placement))
      chunk = _read(
        source, own, eos_id=tokenizer.eos_id, sequence=sequence, valid_BT=documents_BT[first:last] >= 0,
        pad_id=tokenizer.pad_id, marker=marker)
      if source.answers:
        documents_BT = np.where(source.answers.weights[placement.index_BT] > 0, documents_BT, -1)
      yield EvalBatch(chunk, placement.positions_BT, documents_BT, fresh=number == 0)


def host_rows(batch: int, host: int, num_hosts: int) -> tuple[int, int]:
  """The contiguous rows [first, last) of a batch that belong to one host."""
  if batch % num_hosts:
    raise ValueError(
      f"the batch of {batch} rows cannot be divided among {num_hosts} hosts; use a multiple of {num_hosts}.")
  return host * batch // num_hosts, (host + 1) * batch // num_hosts


def _read(
    source: Source, placement: Placement, *, eos_id: int, sequence: int,
    valid_BT: np.ndarray | None = None, pad_id: int = 0, marker: Marker | None = None) -> Batch:
  index_BT = placement.index_BT
  targets_BT = source.tokens[index_BT]
  # The token before a piece is not used.
  before_B1 = source.tokens[np.where(placement.reset_BT[:, :1], 0, index_BT[:, :1] - 1)]
  # Inside a piece the input is the previous target; reading it again would double the work of slow sources.
  tokens_BT = np.where(placement.reset_BT, eos_id, np.concatenate([before_B1, targets_BT[:, :-1]], axis=1))
  if valid_BT is None:
    valid_BT = np.ones(index_BT.shape, bool)
  else:
    tokens_BT = np.where(valid_BT, tokens_BT, pad_id)
    targets_BT = np.where(valid_BT, targets_BT, pad_id)
  weights_BT = valid_BT.astype(np.float32)
  if source.answers:
    weights_BT *= source.answers.weights[index_BT]
  marks_BT = None
  if marker is not None:
    previous_BW = _previous(source, placement, marker.look_behind, eos_id)
    marks_BT = np.where(valid_BT, mark_tokens(marker, tokens_BT, previous_BW, placement.positions_BT), np.int8(0))
  segment = make_segment(
    np.ascontiguousarray(placement.positions_BT), ids_BT=placement.ids_BT, valid_BT=valid_BT, marks_BT=marks_BT)
  return Batch(
    tokens_BT=tokens_BT.astype(np.int32),
    targets_BT=targets_BT.astype(np.int32),
    weights_BT=weights_BT,
    segment=segment,
    sequence=np.asarray(sequence, np.int32))


def _previous(source: Source, placement: Placement, count: int, eos_id: int) -> np.ndarray:
  """[B, count], the inputs before the first of each row, −1 before the start of its piece."""
  back_W = np.arange(count, 0, -1)
  position_BW = placement.positions_BT[:, :1] - back_W
  index_BW = placement.index_BT[:, :1] - back_W - 1
  previous_BW = source.tokens[np.where(position_BW > 0, index_BW, 0)].astype(np.int64)
  return np.where(position_BW > 0, previous_BW, np.where(position_BW == 0, eos_id, -1))
