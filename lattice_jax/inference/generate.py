"""Text from a model: the prompt in chunks, then block by block of tokens, each a call of one compiled program."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.domains import SEED, checked
from lattice_jax.inference.placed import mesh_of, place_variables
from lattice_jax.inference.programs import Progress, Shapes, compile_programs
from lattice_jax.inference.prompts import check_room, prompt_chunk, prompt_rows
from lattice_jax.inference.sampling import Sampling
from lattice_jax.models.decoder import needs_token_cache
from lattice_jax.sharding import replicated, tree_bytes, unbox

SPECIAL_IDS = (0, 1, 2)  # pad, eos, unk of every tokenizer here
_CACHE_UNIT = 64  # token caches have a multiple of so many slots, so that prompts of like lengths share programs


@dataclass(frozen=True)
class Options:
  """How texts are drawn, and when they end.

  temperature, top_k, top_p, banned: see `Sampling`; banned ids are never drawn.
  seed: a row's text depends on its prompt and its seed alone; with one number, row r uses seed + r.
  start_ids: what the model reads before a prompt; eos for models trained here.
  stop_ids: end a text, and are no part of it.
  limit: tokens that prompt and text may have together; None where only memory bounds them.
  prefill_len: tokens of prompt a call. block_len: tokens drawn a call. Both change speed and memory only.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int | Sequence[int] = 0
  banned: tuple[int, ...] = SPECIAL_IDS
  start_ids: tuple[int, ...] = (1,)
  stop_ids: tuple[int, ...] = ()
  limit: int | None = None
  prefill_len: int = 256
  block_len: int = 16


@dataclass
class Timing:
  """Seconds; `compile_seconds` come on top of the others and are 0 where the programs were compiled before.

  tokens: drawn after the first block, in `decode_seconds`. cache_bytes: of the memory's state, all rows.
  """

  compile_seconds: float = 0.0
  first_token_seconds: float = 0.0
  decode_seconds: float = 0.0
  tokens: int = 0
  cache_bytes: int = 0

  @property
  def tokens_per_second(self) -> float | None:
    """Of all rows together; None where the first block was all."""
    return self.tokens / self.decode_seconds if self.tokens else None


@dataclass
class Text:
  """One row. finish: why it ended, None while it goes on.

  stop: a stop id, or `TokenStream.end`. length: as many tokens as were asked for. context: `limit` was reached first.
  """

  ids: list[int] = field(default_factory=list)
  finish: str | None = None


def generate(
  model: ModelConfig, variables: Any, prompts: Sequence[Any] | np.ndarray, *, length: int, **options: Any,
) -> np.ndarray:
  """The `length` tokens [B, length] that follow each prompt; prompts may differ in length and may be empty.

  `options` are those of `Options`. Memory is the layers' state: constant in `length`, but for softmax attention, whose
  token cache holds prompt and text. Where a text may end early, `TokenStream` says where and why.
  """
  stream = TokenStream(model, variables, prompts, length=length, options=Options(**options))
  for _ in stream:
    pass
  ended = [text.finish for text in stream.texts if text.finish != "length"]
  if ended:
    raise ValueError(f"a text ended before its {length} tokens ({ended[0]}); read it from a TokenStream.")
  return np.array([text.ids for text in stream.texts], np.int32)


class TokenStream:
  """Texts as they are drawn. Iterating gives the new ids of every row, block by block, until all have ended.

  `texts` holds what was drawn so far, `timing` what it took.

  Raises:
    ValueError: an option is out of range, a prompt is empty or holds ids that are none, or leaves no room in `limit`.
  """

  def __init__(
    self, model: ModelConfig, variables: Any, prompts: Sequence[Any] | np.ndarray, *, length: int, options: Options):
    if length < 1 or options.prefill_len < 1 or options.block_len < 1:
      raise ValueError(
        f"length={length}, prefill_len={options.prefill_len} and block_len={options.block_len} must be at least 1.")
    sampling = Sampling(
      banned=tuple(options.banned), temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    self._rows = prompt_rows(prompts, options.start_ids, model.vocab)
    seeds = _row_seeds(options.seed, len(self._rows))
    check_room(self._rows, options.limit)
    self.texts = [Text() for _ in self._rows]
    self._wanted_length, self._stop_ids = length, tuple(options.stop_ids)
    self._allowed_B = np.array([
      length if options.limit is None else min(length, options.limit - len(row)) for row in self._rows], np.int32)
    longest = max(map(len, self._rows))
    chunk_len = min(options.prefill_len, model.cache.call_len or options.prefill_len, 1 << (longest - 1).bit_length())
    self._shapes = Shapes(
      batch=len(self._rows), chunk_len=chunk_len, block_len=options.block_len, prompt_len=_cache_len(model, longest),
      max_len=_cache_len(model, longest + int(self._allowed_B.max())))
    start = time.perf_counter()
    self._mesh = mesh_of(unbox(variables))
    self._variables = place_variables(variables, self._mesh)
    self._programs = compile_programs(model, sampling, self._shapes, self._mesh, self._variables)
    self.timing = Timing(compile_seconds=time.perf_counter() - start)
    self._key_data_BW = np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds])

  def end(self, row: int) -> None:
    """Ends a row's text here; nothing that is drawn later belongs to it."""
    self.texts[row].finish = "stop"

  def __iter__(self) -> Iterator[list[list[int]]]:
    begun = time.perf_counter()
    progress = self._prefill()
    self.timing.cache_bytes = tree_bytes(progress.state)
    is_stop_A = np.isin(np.arange(progress.logits_BA.shape[1]), self._stop_ids)
    fixed = self._put((self._key_data_BW, self._allowed_B, is_stop_A))
    # one block ahead of the host, so that reading and printing a block costs no time of the device
    ahead, num_blocks = None, -(-int(self._allowed_B.max()) // self._shapes.block_len)
    for index in range(num_blocks + 1):
      block, ahead = ahead, None
      if index < num_blocks:
        wanted_B = self._put(np.array([text.finish is None for text in self.texts]))
        ahead, progress = self._programs.decode(self._variables, *fixed, wanted_B, progress)
      if block is None:
        continue
      new = [self._extend(row, ids) for row, ids in enumerate(np.asarray(block).tolist())]
      now = time.perf_counter()
      if index == 1:
        self.timing.first_token_seconds, first = now - begun, now
      else:
        self.timing.decode_seconds, self.timing.tokens = now - first, self.timing.tokens + sum(map(len, new))
      yield new
      if all(text.finish for text in self.texts):
        return

  def _prefill(self) -> Progress:
    progress, chunk_len = self._programs.start(), self._shapes.chunk_len
    for start in range(0, max(map(len, self._rows)), chunk_len):
      tokens_BT, segment = self._put(prompt_chunk(self._rows, start, chunk_len))
      progress = self._programs.prefill(self._variables, tokens_BT, segment, progress)
    return self._programs.turn(progress)

  def _extend(self, row: int, ids: list[int]) -> list[int]:
    """Adds a block to a row's text; what was new in it."""
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

  def _put(self, tree: Any) -> Any:
    return jax.device_put(tree, replicated(self._mesh))


def _cache_len(model: ModelConfig, num_tokens: int) -> int:
  return -(-num_tokens // _CACHE_UNIT) * _CACHE_UNIT if needs_token_cache(model) else 0


def _row_seeds(seed: int | Sequence[int], num_rows: int) -> Sequence[int]:
  if isinstance(seed, int):
    return range(checked(SEED, "seed", seed), seed + num_rows)
  if len(seed) != num_rows:
    raise ValueError(f"{len(seed)} seeds were given for {num_rows} prompts; give one each, or a single number.")
  return [checked(SEED, "seed", row) for row in seed]
