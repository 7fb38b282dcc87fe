"""Between requests in text and the engines: encodes prompts, chooses arms, and turns ids into pieces of text."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.inference.serving.engine import Engine
from lattice_jax.inference.serving.metrics import Metrics
from lattice_jax.inference.serving.request import CANCELLED, STOP, Closed, QueueFull, Request, Ticket, check_request
from lattice_jax.inference.serving.routing import Outcome, Router
from lattice_jax.inference.serving.wire import Asked, Refusal
from lattice_jax.inference.text import TextPieces

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

  All arms read and write the ids of `tokenizer`, and have the same room. Methods run on the event loop.
  """

  def __init__(
    self, arms: Mapping[str, Engine], router: Router, tokenizer: Tokenizer, *, name: str, metrics: Metrics):
    self.arms, self.router, self.tokenizer, self.name, self.metrics = dict(arms), router, tokenizer, name, metrics
    self.created = int(time.time())
    first = next(iter(self.arms.values()))
    self._vocab, self._max_len = first.model.vocab, first.options.max_len
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

  def ask(self, prepared: Prepared, *, unit: str, request_id: str) -> Answer:
    """Hands the request to the arm of its unit, and to those that shadow it.

    Raises:
      Refusal: there is no room in the queue, or the server is stopping.
    """
    route = self.router.route(unit)
    answer = Answer(route.arm, request_id, prepared)
    facts = {"request_id": request_id, "unit": unit, "prompt_len": len(prepared.request.ids)}
    try:
      self._submit(prepared, route.arm, facts | {"arm": route.arm, "is_shadow": False}, answer)
    except QueueFull as error:
      raise Refusal(str(error), status=429, type="rate_limit_error", code="queue_full") from error
    except Closed as error:
      raise Refusal(str(error), status=503, type="server_error", code="stopping") from error
    for arm in route.shadows:
      try:
        self._submit(prepared, arm, facts | {"arm": arm, "is_shadow": True}, answer)
      except (QueueFull, Closed):
        self.metrics.dropped.labels(arm).inc()
    return answer

  def _submit(self, prepared: Prepared, arm: str, facts: Mapping[str, Any], answer: Answer) -> None:
    loop = asyncio.get_running_loop()
    emit = None if facts["is_shadow"] else answer.put
    reader = _Reader(
      TextPieces(self.tokenizer, prepared.before, prepared.stops), facts, emit=emit, record=self.router.record,
      later=loop.call_soon_threadsafe)
    answer.tickets.append(self.arms[arm].submit(prepared.request, reader))

  def close(self, *, abort: bool = False) -> None:
    """As `Engine.close`, of all arms."""
    for engine in self.arms.values():
      engine.close(abort=abort)


class Answer:
  """The pieces of one request, as they come."""

  def __init__(self, arm: str, request_id: str, prepared: Prepared):
    self.arm, self.request_id, self.prepared = arm, request_id, prepared
    self.tickets: list[Ticket] = []
    self._pieces: asyncio.Queue[Piece] = asyncio.Queue()

  def put(self, piece: Piece) -> None:
    self._pieces.put_nowait(piece)

  def cancel(self) -> None:
    """Frees the rows; without effect once they are free."""
    for ticket in self.tickets:
      ticket.cancel()

  async def __aiter__(self) -> AsyncIterator[Piece]:
    while True:
      piece = await self._pieces.get()
      yield piece
      if piece.finish:
        return


class _Reader:
  """Turns one arm's ids into text; lives in the engine's thread, and reports to the event loop by `later`."""

  def __init__(
    self, pieces: TextPieces, facts: Mapping[str, Any], *, emit: Callable[[Piece], None] | None,
    record: Callable[[Outcome], None], later: Callable[..., Any]):
    self._pieces, self._facts, self._emit, self._record, self._later = pieces, facts, emit, record, later
    self._ids: list[int] = []
    self._asked = time.perf_counter()
    self._first: float | None = None

  def on_tokens(self, ids: list[int]) -> bool:
    if self._first is None:
      self._first = time.perf_counter()
    self._ids += ids
    text = self._pieces.push(ids)
    if text and self._emit:
      self._later(self._emit, Piece(text, len(self._ids)))
    return self._pieces.is_stopped

  def on_end(self, finish: str) -> None:
    text = "" if finish == CANCELLED else self._pieces.finish()
    if self._pieces.is_stopped and finish != CANCELLED:
      finish = STOP  # by a stop string in what was held back
    outcome = Outcome(
      **self._facts, ids=tuple(self._ids), finish=finish, seconds=time.perf_counter() - self._asked,
      first_token_seconds=None if self._first is None else self._first - self._asked)
    self._later(self._record, outcome)
    if self._emit:
      self._later(self._emit, Piece(text, len(self._ids), finish))
