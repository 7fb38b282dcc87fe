"""A grid of recall prompts: a trial's haystack is read once, each prompt from where it leaves it, for all caches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache import make_policy, uncompressed
from lattice_jax.config import ModelConfig
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.kept import kept_map, needle_kept, row_bytes, slots_in_use, write_map
from lattice_jax.evaluation.recall.grid import Answered, AnswerFile, Grid
from lattice_jax.evaluation.recall.tasks import TASKS, Haystack, RecallPrompt, Sizes
from lattice_jax.inference.session import Session, SessionState
from lattice_jax.models.decoder import Decoder
from lattice_jax.types import whole_segment

_CACHE_UNIT = 64  # of which the slots of the full cache are a multiple

Cells = dict[Sizes, list[str]]  # what is asked of some trials → the caches that have not answered yet


@dataclass(frozen=True, eq=False)
class Subject:
  """What is asked.

  text_ids: what haystacks are cut from. context_len: tokens that the model was made for, if known. key: of the origin
  that all answers in a folder have.
  """

  model: ModelConfig
  variables: Any
  tokenizer: Tokenizer
  text_ids: np.ndarray
  context_len: int | None
  key: str


def run_grid(grid: Grid, subject: Subject, folder: Path, *, report: Callable[[str], None]) -> AnswerFile:
  """Asks what `folder`/answers.jsonl does not hold yet, and adds it line by line; the same call goes on later.

  `report` is told of each cell of a batch that is done. What the first trial's first prompt keeps under each cache,
  head by head, goes to `folder`/kept.

  Raises:
    ValueError: a prompt and its answer are longer than the model's context, or the folder holds answers of another
      origin.
  """
  answers = AnswerFile(folder / "answers.jsonl", subject.key)
  for length in grid.lengths:
    caches = grid.caches_of(length)
    todo = {trials: cells for trials in grid.batches() if (cells := _missing(grid, answers, length, trials))}
    if not todo:
      continue
    prompts = {
      (sizes, trial): _prompt(grid, subject, sizes, trial)
      for trials, cells in todo.items() for sizes in cells for trial in trials}
    answer_len = max(len(prompt.answer) for prompt in prompts.values())
    if subject.context_len is not None and length + answer_len > subject.context_len:
      raise ValueError(
        f"prompts of {length:,} tokens with answers of {answer_len} are more than the {subject.context_len:,} that the "
        f"model was made for; use --lengths of at most {subject.context_len - answer_len:,}.")
    # answers come in one call, so caches that drop tokens need room for no more
    caches = {name: replace(cache, call_len=answer_len) for name, cache in caches.items()}
    model, max_len = uncompressed(subject.model, list(caches.values())), -(-(length + answer_len) // _CACHE_UNIT)
    for trials, cells in todo.items():
      haystack = Session(model, subject.variables, batch=grid.batch, max_len=max_len * _CACHE_UNIT)
      for sizes, prompt in _read(haystack, list(cells), trials, prompts):
        rows = [prompts[sizes, trial] for trial in trials]
        for name in cells[sizes]:
          session = prompt.compress(caches[name])
          if 0 in trials and sizes == grid.sizes_of(length)[0]:
            write_map(folder, name, length, kept_map(session.caches, length))
          asked = _ask(session, subject.tokenizer, rows, grid.examples if 0 in trials else 0)
          answers.add(Answered(
            key=subject.key, task=grid.task, length=length, answer=sizes.answer, depth=sizes.depth, cache=name,
            seed=grid.seed, trials=trials, **asked))
        report(
          f"{grid.task}: {length:,} tokens, {sizes.answer} to say, depth {sizes.depth:g}, trials {trials[0]} to "
          f"{trials[-1]}, {len(cells[sizes])} caches")
  return answers


def _missing(grid: Grid, answers: AnswerFile, length: int, trials: tuple[int, ...]) -> Cells:
  names = grid.caches_of(length)
  cells = {
    sizes: [name for name in names if not answers.has(grid, sizes, name, trials)] for sizes in grid.sizes_of(length)}
  return {sizes: missing for sizes, missing in cells.items() if missing}


def _prompt(grid: Grid, subject: Subject, sizes: Sizes, trial: int) -> RecallPrompt:
  haystack = Haystack(subject.tokenizer, subject.text_ids, trial=trial, seed=grid.seed)
  return TASKS[grid.task](haystack, sizes)


def _read(
  session: Session, cells: Sequence[Sizes], trials: tuple[int, ...], prompts: dict[tuple[Sizes, int], RecallPrompt],
) -> Iterator[tuple[Sizes, Session]]:
  """Every prompt, read under the full cache; the haystack before it is read once for all, in whole chunks."""
  shared = {sizes: min(prompts[sizes, trial].fork for trial in trials) for sizes in cells}
  read = 0
  for sizes in sorted(cells, key=lambda sizes: shared[sizes]):
    rows, place = [prompts[sizes, trial].tokens for trial in trials], shared[sizes]
    place -= (place - read) % session.chunk_len
    if place > read:
      session.read([row[read:place] for row in rows])
      read = place
    prompt = session.fork()
    prompt.read([row[read:] for row in rows])
    yield sizes, prompt


def _ask(
  session: Session, tokenizer: Tokenizer, rows: Sequence[RecallPrompt], examples: int) -> dict[str, Any]:
  """What the session's cache makes of the answers: the fields of `Answered`."""
  cache = session.model.cache
  policy = make_policy(cache)
  padded = [np.pad(row.answer, (0, cache.call_len - len(row.answer))) for row in rows]
  nll_BG, right_BG = score_answers(session, padded)
  asked = {
    "right": [right_BG[index, :len(row.answer)].tolist() for index, row in enumerate(rows)],
    "nll": [nll_BG[index, :len(row.answer)].astype(float).round(4).tolist() for index, row in enumerate(rows)],
    "judged": [[bool(tokenizer.decode(row.answer[n:n + 1]).strip()) for n in range(len(row.answer))] for row in rows],
    "kept": slots_in_use(session.caches), "per_partition": 0 if policy.is_online else policy.keep,
    "needle_kept": np.round(needle_kept(session.caches, [row.needle for row in rows]), 4).tolist(),
    "cache_bytes": row_bytes(session.caches), "written": []}
  if examples:
    ids_BT = write_greedily(session, max(len(row.answer) for row in rows))
    asked["written"] = [tokenizer.decode(ids_T).decode(errors="replace") for ids_T in ids_BT[:min(examples, len(rows))]]
  return asked


def score_answers(session: Session, answers: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """(nats, whether it was the likeliest) of each token of the answers, all equally long; the session stays there."""
  answers_BG = np.stack([*answers, *[answers[-1]] * (session.batch - len(answers))])
  nll_BG, right_BG = _score(session.model, session.variables, session.put(answers_BG), session.state)
  return np.asarray(nll_BG)[:len(answers)], np.asarray(right_BG)[:len(answers)]


@functools.partial(jax.jit, static_argnums=0)
def _score(
  model: ModelConfig, variables: Any, answers_BG: jax.Array, state: SessionState) -> tuple[jax.Array, jax.Array]:
  decoder, (batch, length) = Decoder(model), answers_BG[:, :-1].shape
  logits_BGA = state.logits_BA[:, None]
  if length:
    segment = whole_segment(batch, length)
    segment = segment.replace(positions_BT=state.position_B[:, None] + segment.positions_BT)
    output = decoder.apply(variables, answers_BG[:, :-1], state.memory, segment)
    rest_BTA = decoder.apply(variables, output.features_BTD, method=Decoder.logits)
    logits_BGA = jnp.concatenate([logits_BGA, rest_BTA], axis=1)
  log_probability_BGA = jax.nn.log_softmax(logits_BGA)
  nll_BG = -jnp.take_along_axis(log_probability_BGA, answers_BG[..., None], axis=-1)[..., 0]
  return nll_BG, logits_BGA.argmax(-1) == answers_BG


def write_greedily(session: Session, length: int) -> np.ndarray:
  """What the model itself writes: ids [batch, length]."""
  tokens = []
  for _ in range(length):
    tokens.append(_likeliest(session.state.logits_BA))
    session.step(tokens[-1])
  return np.stack([np.asarray(token_B) for token_B in tokens], axis=1)


@jax.jit
def _likeliest(logits_BA: jax.Array) -> jax.Array:
  return logits_BA.argmax(-1).astype(jnp.int32)
