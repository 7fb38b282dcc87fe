"""Generates text: reads the prompts in chunks, then draws block by block, each with one call of a compiled program."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from lattice_jax.allocator import give_back
from lattice_jax.cache.convert import uncompressed
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.domains import SEED, checked
from lattice_jax.inference.blocks import start_draws
from lattice_jax.inference.engine import ResidentWeights, engine_of
from lattice_jax.inference.prompt_windows import PromptWindows, TextWindows, reading_model, windows_of
from lattice_jax.inference.prompts import Spans, check_room, prompt_rows, protected_rows
from lattice_jax.inference.sampling import Sampling
from lattice_jax.inference.session import Session
from lattice_jax.marks import Marker
from lattice_jax.models.decoder import needs_token_cache, protected_room
from lattice_jax.sharding import tree_bytes

SPECIAL_IDS = (0, 1, 2)  # pad, eos, unk of every tokenizer here
_LEAST_SLOTS = 64  # of a token cache


@dataclass(frozen=True)
class GenerateOptions:
  """How texts are drawn, and when they end.

  temperature, top_k, top_p, banned: see `Sampling`.
  seed: a row's text depends on its prompt and its seed alone; if this is one number, row r uses seed + r.
  start_ids: what the model reads before a prompt; eos for models trained here.
  stop_ids: ids that end a text and are no part of it.
  limit: the most tokens that prompt and text may have together; None for no limit but memory.
  prefill_len: tokens of the prompt read per call. block_len: the most tokens drawn per call; the first call draws one,
    which waits for no other. Both change only speed and memory.
  marker: says which tokens are anchors, of prompt and text. protected: of each prompt the (start, stop) of its tokens
    that no memory shall drop, counted without `start_ids`.
  windows: "per_prompt" to read prompts with full attention and go on with windows of the memory `local` that each
    prompt chooses, or how it does; see `prompt_windows`.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int | Sequence[int] = 0
  banned: tuple[int, ...] = SPECIAL_IDS
  start_ids: tuple[int, ...] = (1,)
  stop_ids: tuple[int, ...] = ()
  limit: int | None = None
  prefill_len: int = 512
  block_len: int = 16
  marker: Marker | None = field(default=None, compare=False)
  protected: Sequence[Spans] = ()
  windows: PromptWindows | str = ""


@dataclass
class Timing:
  """Seconds. `compile_seconds` are not part of the others, and are 0 where the programs were compiled before.

  tokens: those drawn after the first, in `decode_seconds`. cache_bytes: the state of the memory, all rows.
  """

  compile_seconds: float = 0.0
  first_token_seconds: float = 0.0
  decode_seconds: float = 0.0
  tokens: int = 0
  cache_bytes: int = 0

  @property
  def tokens_per_second(self) -> float | None:
    """All rows together; None if there was only one token."""
    return self.tokens / self.decode_seconds if self.tokens else None


@dataclass
class GeneratedRow:
  """The text of one row. finish: why it ended; None while it goes on.

  stop: by a stop id or `TokenStream.end`. length: it has all tokens asked for. context: it reached `limit` first.
  """

  ids: list[int] = field(default_factory=list)
  finish: str | None = None


def generate(
  model: ModelConfig, variables: Any, prompts: Sequence[Any] | np.ndarray, *, length: int, **options: Any,
) -> np.ndarray:
  """The `length` tokens [B, length] that follow each prompt; prompts may differ in length and may be empty.

  `options` are the fields of `GenerateOptions`. The memory does not grow with `length`, except the token cache of
  softmax attention, which holds prompt and text. If texts may end early, use `TokenStream`, which says where and why.
  """
  stream = TokenStream(model, variables, prompts, length=length, options=GenerateOptions(**options))
  for _ in stream:
    pass
  ended = [text.finish for text in stream.texts if text.finish != "length"]
  if ended:
    raise ValueError(f"a text ended before its {length} tokens ({ended[0]}); read it from a TokenStream.")
  return np.array([text.ids for text in stream.texts], np.int32)


class TokenStream:
  """Texts as they are drawn. Iterating yields the new ids of every row, block by block, until all texts have ended.

  variables: a decoder's, or an `engine.Engine`. `texts` holds what has been drawn so far, `timing` how long it took.

  Raises:
    ValueError: an option is out of range, or a prompt is empty, holds unknown ids, or leaves no room in `limit`.
  """

  def __init__(
    self, model: ModelConfig, variables: Any, prompts: Sequence[Any] | np.ndarray, *, length: int,
    options: GenerateOptions):
    if length < 1 or options.prefill_len < 1 or options.block_len < 1:
      raise ValueError(
        f"length={length}, prefill_len={options.prefill_len} and block_len={options.block_len} must be at least 1.")
    sampling = Sampling(
      banned=tuple(options.banned), temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    self._rows = prompt_rows(prompts, options.start_ids, model.vocab)
    num_start = len(options.start_ids)
    protected_rows([row[num_start:] for row in self._rows], options.protected, protected_room(model))
    self._protected = [[(num_start + start, num_start + stop) for start, stop in own] for own in options.protected]
    seeds = _row_seeds(options.seed, len(self._rows))
    check_room(self._rows, options.limit)
    self.texts = [GeneratedRow() for _ in self._rows]
    self._wanted_length, self._stop_ids = length, tuple(options.stop_ids)
    self._allowed_B = np.array([
      length if options.limit is None else min(length, options.limit - len(row)) for row in self._rows], np.int32)
    longest = max(map(len, self._rows))
    chunk_len = min(options.prefill_len, model.cache.call_len or options.prefill_len, 1 << (longest - 1).bit_length())
    self._block_len = options.block_len
    self._max_len = _cache_len(model, longest + int(self._allowed_B.max()))
    reading, self._writing = reading_and_writing(model)
    self._engine, self._sampling, self._windows = engine_of(variables), sampling, None
    if (windows := windows_of(options.windows)) is not None:
      if not isinstance(self._engine, ResidentWeights):
        raise ValueError(
          "windows are chosen per prompt only for weights that are in memory; leave out the weights budget.")
      reading, self._windows = reading_model(model, windows), TextWindows(model, windows, self._max_len)
    start = time.perf_counter()
    give_back()
    self._session = self._engine.open_session(
      reading, batch=len(self._rows), chunk_len=chunk_len,
      max_len=self._max_len if reading is self._writing else _cache_len(model, longest), marker=options.marker)
    self.timing = Timing(compile_seconds=time.perf_counter() - start)
    if self._windows is None:
      self._compile_block(self._writing)
    self._key_data_BW = np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds])

  @property
  def session(self) -> Session:
    """What reads: before the first token the prompts, then the texts."""
    return self._session

  @property
  def window_log(self) -> list[dict[str, Any]]:
    """What was decided about windows so far; empty without `windows`."""
    return [] if self._windows is None else self._windows.log

  @property
  def hlo(self) -> tuple[str, str]:
    """Text of the compiled programs that read a chunk of the prompts, and draw a block.

    With `windows` the second is known once the prompts have been read.
    """
    return self._session.chunk_hlo, self._draw_block.as_text()

  def end(self, row: int) -> None:
    """Ends a row's text here; tokens drawn later do not belong to it."""
    self.texts[row].finish = "stop"

  def __iter__(self) -> Iterator[list[list[int]]]:
    try:
      yield from self._blocks()
    finally:
      self._session.close()

  def _blocks(self) -> Iterator[list[list[int]]]:
    begun = self._clock()
    session = self._session = self._read_prompts()
    self.timing.cache_bytes = tree_bytes(session.state.memory)
    is_stop_A = np.isin(np.arange(self._writing.vocab), self._stop_ids)
    fixed = session.put((self._key_data_BW, self._allowed_B, is_stop_A))
    draws = session.put(start_draws(session.batch))
    # one block ahead of the host, so that the device does not wait while a block is read and printed
    ahead, left = None, int(self._allowed_B.max())
    for index in itertools.count():
      block, ahead = ahead, None
      if left > 0:
        num = min(left, self._block_len) if index else 1
        given = session.put((np.int32(num), np.array([text.finish is None for text in self.texts])))
        drawn, draws, session.state = self._draw_block(
          session.variables, session.marker, *fixed, *given, draws, session.state)
        noted = None if self._windows is None else self._windows.note(session.state.memory)
        ahead, left = (drawn, num, noted), left - num
      if block is None:
        if index:
          return
        continue
      new = [self._extend(row, ids[:block[1]]) for row, ids in enumerate(np.asarray(block[0]).tolist())]
      if self._windows is not None and ahead is not None:
        session = self._session = self._lowered(self._windows.observe(block[2], session))
      now = self._clock()
      if index == 1:
        self.timing.first_token_seconds, first = now - begun, now
      else:
        self.timing.decode_seconds, self.timing.tokens = now - first, self.timing.tokens + sum(map(len, new))
      yield new
      if all(text.finish for text in self.texts):
        return

  def _read_prompts(self) -> Session:
    """The session that has read the prompts and goes on with the texts."""
    self._session.read(self._rows, self._protected)
    if self._windows is not None:
      session = self._windows.choose(self._session)
      self._compile_block(session.model)
      return session
    if self._session.model is self._writing:
      return self._session
    return self._session.compress(self._writing.cache, self._max_len)

  def _lowered(self, session: Session) -> Session:
    """The same, with the program of its windows if these are new."""
    if session is not self._session:
      self._compile_block(session.model)
    return session

  def _compile_block(self, model: ModelConfig) -> None:
    start = time.perf_counter()
    self._draw_block = self._engine.compile_block(
      model, self._sampling, self._block_len, self._max_len, self._session)
    give_back()
    self.timing.compile_seconds += time.perf_counter() - start

  def _clock(self) -> float:
    """Seconds in which nothing was compiled."""
    return time.perf_counter() - self.timing.compile_seconds

  def _extend(self, row: int, ids: list[int]) -> list[int]:
    """Adds a block to a row's text, and returns the ids that were added."""
    text, allowed, new = self.texts[row], int(self._allowed_B[row]), []
    if text.finish:
      return []
    for id in ids[:allowed - len(text.ids)]:
      if id in self._stop_ids:
        text.finish = "stop"
        break
      new.append(id)
    text.ids += new
    if not text.finish and len(text.ids) == allowed:
      text.finish = "length" if allowed == self._wanted_length else "context"
    return new


def reading_and_writing(model: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
  """(the model as it reads prompts, as it goes on with the texts).

  The whole prompt is read before a cache drops tokens of it, unless `call_len` says that there is no room for that.
  """
  if make_policy(model.cache).drops and not model.cache.call_len:
    return uncompressed(model), replace(model, cache=replace(model.cache, call_len=1))
  return model, model


def _cache_len(model: ModelConfig, num_tokens: int) -> int:
  """Room for so many tokens, in few different sizes, each of which is a program: powers of two and halfway between."""
  if not needs_token_cache(model):
    return 0
  power = 1 << (num_tokens - 1).bit_length()
  return max(_LEAST_SLOTS, power * 3 // 4 if num_tokens <= power * 3 // 4 else power)


def _row_seeds(seed: int | Sequence[int], num_rows: int) -> Sequence[int]:
  if isinstance(seed, int):
    return range(checked(SEED, "seed", seed), seed + num_rows)
  if len(seed) != num_rows:
    raise ValueError(f"{len(seed)} seeds were given for {num_rows} prompts; give one each, or a single number.")
  return [checked(SEED, "seed", row) for row in seed]
