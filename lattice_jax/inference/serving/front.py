"""Between requests in text and the engines: encodes prompts, chooses arms, and turns ids into pieces of text."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.inference.serving.engine import Engine
from lattice_jax.inference.serving.metrics import Metrics
from lattice_jax.inference.serving.request import (
  CANCELLED,
  FAILED,
  NOT_FINITE,
  STOP,
  Closed,
  QueueFull,
  Request,
  Ticket,
  check_request,
)
from lattice_jax.inference.serving.routing import REFUSED, Answered, Outcome, Route, Router
from lattice_jax.inference.serving.wire import Asked, Refusal
from lattice_jax.inference.text import TextPieces

_log = logging.getLogger(__name__)

_PREPARED_AT_ONCE = 4
_DEFAULT_LENGTH = 16  # of a completion, as OpenAI has it; an answer in a chat may fill the context


@dataclass(frozen=True)
class Prepared:
  """request: for the engines. before: ids of the prompt, which decide how the text starts. echo: what comes first."""

  request: Request
  before: list[int]
  stops: tuple[str, ...]
  echo: str


@dataclass(frozen=True)
class Piece:
  """Text that follows, the number of its tokens so far, and why it ends here; None while it goes on."""

  text: str
  num_tokens: int
  finish: str | None = None


class Front:
  """The arms behind one address; their engines have been started. name: by which clients call the model.

  page: makes the HTML page that /rollout shows, in whatever thread; None if there is no rollout. All arms read and
  write the ids of `tokenizer`. Methods run on the event loop.
  """

  def __init__(
    self, arms: Mapping[str, Engine], router: Router, tokenizer: Tokenizer, *, name: str, metrics: Metrics,
    page: Callable[[], str] | None = None):
    self.arms, self.router, self.tokenizer, self.name, self.metrics = dict(arms), router, tokenizer, name, metrics
    self.page, self._is_closing = page, False
    self.created = int(time.time())
    # long prompts take their time, and a chat template runs in a process of its own, so only few at once
    self._preparer = concurrent.futures.ThreadPoolExecutor(_PREPARED_AT_ONCE, "preparer")
    # one thread, so that requests are recorded in the order in which they end
    self._recorder = concurrent.futures.ThreadPoolExecutor(1, "recorder")
    self._vocab = min(engine.model.vocab for engine in self.arms.values())
    self._max_len = min(engine.options.max_len for engine in self.arms.values())
    for arm, engine in self.arms.items():
      metrics.watch(arm, engine)
    metrics.count_compilations()

  @property
  def is_healthy(self) -> bool:
    return all(engine.is_alive for engine in self.arms.values())

  def prepare(self, asked: Asked) -> Prepared:
    """The request in ids; may take long, and may run in whatever thread.

    Raises:
      Refusal: the prompt cannot be encoded, or does not fit the context.
    """
    try:
      ids, start_ids = self._encode(asked)
    except ValueError as error:
      raise Refusal(str(error), param="messages" if asked.messages else "prompt") from error
    whole = np.array([*start_ids, *ids], np.int64)
    room = self._max_len - whole.size
    length = asked.length or (room if asked.messages else min(room, _DEFAULT_LENGTH))
    if asked.length and whole.size + length > self._max_len:
      raise Refusal(
        f"the prompt has {whole.size:,} tokens, and {length:,} more were asked for; the context holds "
        f"{self._max_len:,} of both together.", param=asked.length_field, code="context_length_exceeded")
    request = Request(
      ids=whole, length=max(1, length), temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p,
      seed=secrets.randbits(32) if asked.seed is None else asked.seed, stop_ids=asked.stop_ids)
    try:
      check_request(request, vocab=self._vocab, max_len=self._max_len)
    except ValueError as error:
      raise Refusal(
        str(error), param="messages" if asked.messages else "prompt",
        code="context_length_exceeded" if room < 1 else None) from error
    echo = self.tokenizer.decode(np.asarray(ids)).decode(errors="replace") if asked.echo else ""
    return Prepared(request, list(ids), asked.stops, echo)

  def _encode(self, asked: Asked) -> tuple[list[int], tuple[int, ...]]:
    """(ids of the prompt, what the model reads before them)."""
    start_ids = tuple(self.tokenizer.start_ids)
    if asked.messages:
      # a chat template begins with the start ids itself
      return self.tokenizer.encode(self.tokenizer.chat(asked.messages).encode()).tolist(), ()
    if isinstance(asked.prompt, str):
      return self.tokenizer.encode(asked.prompt.encode()).tolist(), start_ids
    ids = list(asked.prompt)
    return ids, () if start_ids and tuple(ids[:len(start_ids)]) == start_ids else start_ids

  async def ask(self, asked: Asked, *, unit: str, request_id: str) -> Answer:
    """Hands the request to the arm of its unit, and to those that shadow it.

    Raises:
      Refusal: as `prepare`, there is no room in the queue, or the server is stopping.
    """
    route, loop = self.router.route(unit), asyncio.get_running_loop()

    def submit(arm: str, emit: Callable[[Piece], Any]) -> None:
      engine = self.arms[arm]
      reader = _Reader(
        TextPieces(self.tokenizer, prepared.before, prepared.stops), emit, cache_bytes=engine.row_bytes,
        ended=lambda outcome: loop.call_soon_threadsafe(answer.end, arm, outcome))
      answer.tickets[arm] = engine.submit(prepared.request, reader)

    try:
      self.arms[route.arm].check_room()  # before the work on a prompt that nobody would read
      prepared = await loop.run_in_executor(self._preparer, self.prepare, asked)
      answer = Answer(route, request_id, unit, prepared, self._record)
      submit(route.arm, functools.partial(loop.call_soon_threadsafe, answer.put))
    except QueueFull as error:
      self._record_refused(route, request_id, unit)
      raise Refusal(str(error), status=429, type="rate_limit_error", code="queue_full") from error
    except Closed as error:
      if not self._is_closing:  # the engine has failed
        self._record_refused(route, request_id, unit)
      raise Refusal(str(error), status=503, type="server_error", code="stopping") from error
    for arm in route.shadows:
      try:
        submit(arm, lambda piece: None)
      except (QueueFull, Closed) as error:
        self.metrics.dropped.labels(arm).inc()
        if isinstance(error, Closed) and not self._is_closing:
          answer.refuse(arm, self._refused(arm))
    return answer

  def _record_refused(self, route: Route, request_id: str, unit: str) -> None:
    """An arm that cannot answer is to blame for that, as one is that fails."""
    self._record(Answered(request_id, unit, route, (), {route.arm: self._refused(route.arm)}))

  def _refused(self, arm: str) -> Outcome:
    return Outcome(
      ids=(), finish=REFUSED, first_seconds=None, next_seconds=None, longest_seconds=None,
      cache_bytes=self.arms[arm].row_bytes)

  def _record(self, answered: Answered) -> None:
    self._recorder.submit(self._record_in_order, answered)

  def _record_in_order(self, answered: Answered) -> None:
    try:
      self.router.record(answered)
    except Exception:
      _log.exception("the router failed to record a request")

  def close(self, *, abort: bool = False) -> None:
    """As `Engine.close`, of all arms."""
    self._is_closing = True
    for engine in self.arms.values():
      engine.close(abort=abort)

  async def end(self, seconds: float) -> None:
    """Ends all texts, and waits so long at most until the router knows of them."""
    self.close(abort=True)
    for engine in self.arms.values():
      await asyncio.to_thread(engine.join, seconds)
    await asyncio.sleep(0)  # what the engines reported last stands before this in the loop
    for pool in (self._preparer, self._recorder):
      await asyncio.to_thread(pool.shutdown)
    await asyncio.to_thread(self.router.close)
    self.metrics.close()


class Answer:
  """The pieces of one request, as they come, and the outcomes of its arms."""

  def __init__(
    self, route: Route, request_id: str, unit: str, prepared: Prepared, record: Callable[[Answered], None]):
    self.route, self.request_id, self.unit, self.prepared = route, request_id, unit, prepared
    self.tickets: dict[str, Ticket] = {}
    self._record, self._outcomes = record, {}
    self._pieces: asyncio.Queue[Piece] = asyncio.Queue()

  def put(self, piece: Piece) -> None:
    self._pieces.put_nowait(piece)

  def end(self, arm: str, outcome: Outcome) -> None:
    """Keeps what an arm made of it, and reports once all have ended."""
    self._outcomes[arm] = outcome
    if self.tickets.keys() <= self._outcomes.keys():
      self._record(Answered(
        self.request_id, self.unit, self.route, tuple(self.prepared.request.ids.tolist()), self._outcomes))

  def refuse(self, arm: str, outcome: Outcome) -> None:
    """An arm that has failed wrote nothing; to be called before any arm has ended."""
    self._outcomes[arm] = outcome

  def cancel(self) -> None:
    """Frees the rows; without effect once the text has ended, so that those who shadow it end theirs too."""
    if self.route.arm in self._outcomes and self._outcomes[self.route.arm].finish != CANCELLED:
      return
    for ticket in self.tickets.values():
      ticket.cancel()

  async def __aiter__(self) -> AsyncIterator[Piece]:
    while True:
      piece = await self._pieces.get()
      yield piece
      if piece.finish:
        return


class _Reader:
  """Turns one arm's ids into text, in the engine's thread."""

  def __init__(
    self, pieces: TextPieces, emit: Callable[[Piece], Any], *, ended: Callable[[Outcome], Any], cache_bytes: int):
    self._pieces, self._emit, self._ended, self._cache_bytes = pieces, emit, ended, cache_bytes
    self._ids: list[int] = []
    self._times = [time.perf_counter()]

  def on_tokens(self, ids: list[int]) -> bool:
    self._times.append(time.perf_counter())
    self._ids += ids
    text = self._pieces.push(ids)
    if text:
      self._emit(Piece(text, len(self._ids)))
    return self._pieces.is_stopped

  def on_end(self, finish: str) -> None:
    text = "" if finish == CANCELLED else self._pieces.finish()
    if self._pieces.is_stopped and finish != CANCELLED:
      finish = STOP  # by a stop string in what was held back
    first, *gaps = np.diff(self._times).tolist() or [None]
    self._ended(Outcome(
      ids=tuple(self._ids), finish=finish, first_seconds=first, cache_bytes=self._cache_bytes,
      next_seconds=statistics.median(gaps) if gaps else None, longest_seconds=max(gaps, default=None)))
    self._emit(Piece(text, len(self._ids), FAILED if finish == NOT_FINITE else finish))
