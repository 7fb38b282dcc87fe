"""The engine: takes requests while others are being answered, and hands each of them its own tokens.

A thread repeats one step: read a chunk of a prompt (or a few, by the options), if one waits and a row is free; order a
block of tokens for all rows; hand out the block before. So a text waits between two tokens for one chunk of another's
prompt at most, and the device has work while the host hands out.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.inference.compilation import TreeSpec
from lattice_jax.inference.generate import reading_and_writing
from lattice_jax.inference.prompts import prompt_chunk
from lattice_jax.inference.serving.programs import admission, compile_admit, compile_draw, compile_start
from lattice_jax.inference.serving.request import (
  ABORTED,
  CANCELLED,
  FAILED,
  STOP,
  Closed,
  EngineOptions,
  Listener,
  Meter,
  QueueFull,
  Request,
  Ticket,
  check_request,
)
from lattice_jax.inference.session import Session
from lattice_jax.marks import Marker
from lattice_jax.models.decoder import needs_token_cache
from lattice_jax.sharding import tree_bytes

_log = logging.getLogger(__name__)


@dataclass
class _Reading:
  """A prompt that is being read for a row; `start` is the place of its next chunk."""

  ticket: Ticket
  row: int
  start: int = 0


@dataclass(frozen=True)
class _Block:
  """Tokens that the device was asked for, and whose they are: a row may have another text by the time they come."""

  tokens_BN: jax.Array
  tickets: tuple[Ticket | None, ...]


class _Nobody(Listener):
  def on_tokens(self, ids: list[int]) -> bool:
    return False


class Engine:
  """Answers requests under one model with one cache policy. `start` it before the first request.

  Every text is what `generate` writes after its prompt alone, with the same seed and `prefill_len` = chunk_len.
  banned, stop_ids, marker: as in `generate.GenerateOptions`.
  row_bytes, cache_bytes: of the memory of one row; of all rows, with the one in which prompts are read.

  Raises:
    ValueError: as `Session`.
  """

  def __init__(
    self, model: ModelConfig, variables: Any, options: EngineOptions, *, banned: tuple[int, ...] = (),
    stop_ids: tuple[int, ...] = (), marker: Marker | None = None, meter: Meter | None = None):
    self.model, self.options, self.meter = model, options, meter or Meter()
    reading, writing = reading_and_writing(model)
    max_len = options.max_len if needs_token_cache(model) else 0
    chunk_len = min(options.chunk_len, model.cache.call_len or options.chunk_len)
    self._session = Session(reading, variables, batch=1, max_len=max_len, chunk_len=chunk_len, marker=marker)
    key = options.rows, max_len, self._session.mesh, TreeSpec.of(self._session.marker)
    self._admit = compile_admit(reading, writing, *key)
    self._draw = compile_draw(writing, banned, options.block_len, options.rows, max_len, self._session)
    self._device_rows = compile_start(writing, *key)()
    memory_bytes = tree_bytes(self._device_rows.session.memory)
    self.row_bytes = memory_bytes // options.rows
    self.cache_bytes = memory_bytes + tree_bytes(self._session.state.memory)
    self._stop_A = self._session.put(np.isin(np.arange(model.vocab), stop_ids))
    self._wanted, self._wanted_B = None, None
    self._rows: list[Ticket | None] = [None] * options.rows
    self._waiting: collections.deque[Ticket] = collections.deque()
    self._reading: _Reading | None = None
    self._ahead: _Block | None = None
    self._changed = threading.Condition()
    self._is_closing = self._is_aborting = False
    self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

  @property
  def rows_in_use(self) -> int:
    return sum(ticket is not None for ticket in self._rows) + (self._reading is not None)

  @property
  def queue_len(self) -> int:
    return len(self._waiting)

  @property
  def is_alive(self) -> bool:
    return self._thread.is_alive()

  def start(self) -> None:
    """Runs every program once, so that no request waits for one to be loaded, and then takes requests."""
    meter, self.meter = self.meter, Meter()
    self._waiting.append(Ticket(Request(np.zeros(1, np.int32), 1), _Nobody(), allowed=1, wake=self._wake))
    while self._waiting or self._reading or self._ahead or any(self._rows):
      self._step()
    self.meter = meter
    self._thread.start()

  def submit(self, request: Request, listener: Listener) -> Ticket:
    """Takes a request, from whatever thread.

    Raises:
      ValueError: as `check_request`.
      QueueFull: as many requests wait as may.
      Closed: the engine is stopping, or has failed.
    """
    check_request(request, vocab=self.model.vocab, max_len=self.options.max_len)
    allowed = min(request.length, self.options.max_len - len(request.ids))
    ticket = Ticket(request=request, listener=listener, allowed=allowed, wake=self._wake)
    with self._changed:
      self.check_room()
      self._waiting.append(ticket)
      self._changed.notify_all()
    return ticket

  def check_room(self) -> None:
    """Raises QueueFull or Closed, as `submit` would now."""
    if self._is_closing or not self.is_alive:
      raise Closed("the server is stopping, and takes no more requests; try another one.")
    if len(self._waiting) >= self.options.queue + self.options.rows - self.rows_in_use:
      raise QueueFull(f"{self.options.queue:,} requests wait for a row already, as many as may; try again later.")

  def close(self, *, abort: bool = False) -> None:
    """Takes no more requests, and ends once those it has are answered; with `abort` it ends these at once."""
    with self._changed:
      self._is_closing, self._is_aborting = True, self._is_aborting or abort
      self._changed.notify_all()

  def join(self, timeout: float | None = None) -> None:
    """Waits for the end that `close` asked for."""
    self._thread.join(timeout)

  def _wake(self) -> None:
    with self._changed:
      self._changed.notify_all()

  def _run(self) -> None:
    try:
      while self._has_work():
        self._step()
    except Exception:
      _log.exception("the engine failed, and ends all texts")
      self._end_all(FAILED)

  def _has_work(self) -> bool:
    """Waits for some; False where none will come."""
    with self._changed:
      while not (self._waiting or self._reading or self._ahead or any(self._rows)):
        if self._is_closing:
          return False
        self._changed.wait()
    return True

  def _step(self) -> None:
    if self._is_aborting:
      self._end_all(ABORTED)
    self._end_cancelled()
    for _ in range(self.options.chunks):
      self._read_chunk()
    before, self._ahead = self._ahead, self._order()
    if before is not None:
      self._hand_out(before)

  def _tickets(self) -> list[Ticket]:
    reading = [self._reading.ticket] if self._reading else []
    return [*filter(None, self._rows), *reading, *self._waiting]

  def _end_all(self, finish: str) -> None:
    with self._changed:
      self._is_closing, tickets = True, self._tickets()
    for ticket in tickets:
      self._end(ticket, finish)

  def _end_cancelled(self) -> None:
    with self._changed:
      left = [ticket for ticket in self._tickets() if ticket.is_cancelled]
    for ticket in left:
      self._end(ticket, CANCELLED)

  def _read_chunk(self) -> None:
    """Reads on in a prompt, or begins one; the text of a prompt that was read goes on in its row."""
    if self._reading is None and not self._begin():
      return
    reading, ids = self._reading, self._reading.ticket.request.ids
    self._session.read_call(*prompt_chunk([ids], reading.start, self._session.chunk_len))
    reading.start += self._session.chunk_len
    if reading.start < len(ids):
      return
    request = reading.ticket.request
    numbers = admission(
      row=reading.row, seed=request.seed, allowed=reading.ticket.allowed, temperature=request.temperature,
      top_k=request.top_k, top_p=request.top_p)
    self._device_rows = self._admit(self._session.state, self._session.put(numbers), self._device_rows)
    self._rows[reading.row], reading.ticket.row, self._reading = reading.ticket, reading.row, None

  def _begin(self) -> bool:
    free = [row for row, ticket in enumerate(self._rows) if ticket is None]
    with self._changed:
      if not free or not self._waiting:
        return False
      self._reading = _Reading(self._waiting.popleft(), free[0])
    self._session.restart()
    return True

  def _order(self) -> _Block | None:
    """Asks for a block of every row that goes on; None where none does."""
    wanted = [ticket is not None and ticket.goes_on for ticket in self._rows]
    if not any(wanted):
      return None
    if wanted != self._wanted:
      self._wanted, self._wanted_B = wanted, self._session.put(np.array(wanted))
    tokens_BN, self._device_rows = self._draw(
      self._session.variables, self._session.marker, self._stop_A, self._wanted_B, self._device_rows)
    tickets = tuple(ticket if is_wanted else None for ticket, is_wanted in zip(self._rows, wanted, strict=True))
    for ticket in filter(None, tickets):
      ticket.ordered += self.options.block_len
    return _Block(tokens_BN, tickets)

  def _hand_out(self, block: _Block) -> None:
    """Waits for the block, and gives each text its tokens; those behind an end are nobody's."""
    for drawn, ticket in zip(np.asarray(block.tokens_BN).tolist(), block.tickets, strict=True):
      if ticket is not None and ticket.finish is None:
        self._extend(ticket, drawn)

  def _extend(self, ticket: Ticket, drawn: list[int]) -> None:
    new, finish = ticket.take(drawn)
    if new:
      now = time.perf_counter()
      if ticket.latest is None:
        self.meter.first_token(now - ticket.submitted)
      else:
        self.meter.gap(now - ticket.latest)
      ticket.latest = now
      if self._tell(ticket, new):
        finish = STOP
    if finish:
      self._end(ticket, finish)

  def _tell(self, ticket: Ticket, new: list[int]) -> bool:
    try:
      return ticket.listener.on_tokens(new)
    except Exception:
      # one reader's fault ends that reader's text, and no other
      _log.exception("a listener failed, and its text ends")
      ticket.is_cancelled = True
      return False

  def _end(self, ticket: Ticket, finish: str) -> None:
    ticket.finish = finish
    if ticket.row is not None:
      self._rows[ticket.row] = None
    elif self._reading is not None and self._reading.ticket is ticket:
      self._reading = None
    else:
      with self._changed:
        self._waiting.remove(ticket)
    self.meter.ended(finish, len(ticket.request.ids), ticket.count)
    try:
      ticket.listener.on_end(finish)
    except Exception:
      _log.exception("a listener failed at the end of its text")
