"""Carries out a plan of retrieval prompts: every haystack is read once, for all its prompts and all caches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.convert import uncompressed
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.cache_contents import kept_map, needle_kept, row_bytes, slots_in_use, write_map
from lattice_jax.evaluation.retrieval.plan import AnswerFile, AnswerRecord, RetrievalPlan
from lattice_jax.evaluation.retrieval.prompts import TASKS, Haystack, PromptSizes, RetrievalPrompt
from lattice_jax.inference.session import Session, SessionState, marked
from lattice_jax.marks import Marker
from lattice_jax.models.decoder import Decoder
from lattice_jax.types import make_segment

_CACHE_UNIT = 64  # the full cache has a multiple of so many slots

Cells = dict[PromptSizes, list[str]]  # sizes of the prompts of some trials → the caches that have not answered them yet


@dataclass(frozen=True, eq=False)
class Subject:
  """The model that is asked, and the text of its prompts.

  text_ids: the text from which haystacks are cut. context_len: tokens that the model was made for, if known. key: of
  the origin that all answers in a folder share. marker: says which tokens are anchors; none are without one.
  """

  model: ModelConfig
  variables: Any
  tokenizer: Tokenizer
  text_ids: np.ndarray
  context_len: int | None
  key: str
  marker: Marker | None = None


def run_plan(plan: RetrievalPlan, subject: Subject, folder: Path, *, report: Callable[[str], None]) -> AnswerFile:
  """Asks what `folder`/answers.jsonl does not hold yet and appends each answer; the same call resumes later.

  `report` gets a line for each finished cell of a batch. Maps of what each cache keeps of the first trial's first
  prompt, head by head, go to `folder`/kept.

  Raises:
    ValueError: a prompt and its answer exceed the model's context, or the folder holds answers of another origin.
  """
  answers = AnswerFile(folder / "answers.jsonl", subject.key)
  for length in plan.lengths:
    caches = plan.caches_of(length)
    todo = {trials: cells for trials in plan.batches() if (cells := _missing(plan, answers, length, trials))}
    if not todo:
      continue
    prompts = {
      (sizes, trial): _prompt(plan, subject, sizes, trial)
      for trials, cells in todo.items() for sizes in cells for trial in trials}
    answer_len = max(len(prompt.answer) for prompt in prompts.values())
    if subject.context_len is not None and length + answer_len > subject.context_len:
      raise ValueError(
        f"prompts of {length:,} tokens with answers of {answer_len} are more than the {subject.context_len:,} that the "
        f"model was made for; use --lengths of at most {subject.context_len - answer_len:,}.")
    # an answer is read in one call, so caches that drop tokens need no room for more
    caches = {name: replace(cache, call_len=answer_len) for name, cache in caches.items()}
    model, max_len = uncompressed(subject.model, list(caches.values())), -(-(length + answer_len) // _CACHE_UNIT)
    for trials, cells in todo.items():
      haystack = Session(
        model, subject.variables, batch=plan.batch, max_len=max_len * _CACHE_UNIT, marker=subject.marker)
      for sizes, prompt in _read(haystack, list(cells), trials, prompts):
        rows = [prompts[sizes, trial] for trial in trials]
        for name in cells[sizes]:
          session = prompt.compress(caches[name])
          if 0 in trials and sizes == plan.sizes_of(length)[0]:
            write_map(folder, name, length, kept_map(session.caches, length))
          asked = _ask(session, subject.tokenizer, rows, plan.examples if 0 in trials else 0)
          answers.add(AnswerRecord(
            key=subject.key, task=plan.task, length=length, answer=sizes.answer, depth=sizes.depth, cache=name,
            seed=plan.seed, trials=trials, **asked))
        report(
          f"{plan.task}: {length:,} tokens, answer size {sizes.answer}, depth {sizes.depth:g}, trials {trials[0]} to "
          f"{trials[-1]}, {len(cells[sizes])} caches")
  return answers


def _missing(plan: RetrievalPlan, answers: AnswerFile, length: int, trials: tuple[int, ...]) -> Cells:
  names = plan.caches_of(length)
  cells = {
    sizes: [name for name in names if not answers.has(plan, sizes, name, trials)] for sizes in plan.sizes_of(length)}
  return {sizes: missing for sizes, missing in cells.items() if missing}


def _prompt(plan: RetrievalPlan, subject: Subject, sizes: PromptSizes, trial: int) -> RetrievalPrompt:
  haystack = Haystack(subject.tokenizer, subject.text_ids, trial=trial, seed=plan.seed)
  return TASKS[plan.task](haystack, sizes)


def _read(
  session: Session, cells: Sequence[PromptSizes], trials: tuple[int, ...],
  prompts: dict[tuple[PromptSizes, int], RetrievalPrompt],
) -> Iterator[tuple[PromptSizes, Session]]:
  """Reads every prompt under the full cache; the haystack that prompts share is read once, in whole chunks."""
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
  session: Session, tokenizer: Tokenizer, rows: Sequence[RetrievalPrompt], examples: int) -> dict[str, Any]:
  """The fields of `AnswerRecord` that describe the answers under the session's cache. Reads on if it has `examples`."""
  cache = session.model.cache
  policy = make_policy(cache)
  padded = [np.pad(row.answer, (0, cache.call_len - len(row.answer))) for row in rows]
  nll_BG, right_BG = score_answers(session, padded)
  asked = {
    "right": [right_BG[index, :len(row.answer)].tolist() for index, row in enumerate(rows)],
    "nll": [nll_BG[index, :len(row.answer)].astype(float).round(4).tolist() for index, row in enumerate(rows)],
    "scored": [[bool(tokenizer.decode(row.answer[n:n + 1]).strip()) for n in range(len(row.answer))] for row in rows],
    "kept": slots_in_use(session.caches), "per_partition": 0 if policy.is_online else policy.keep,
    "needle_kept": np.round(needle_kept(session.caches, [row.needle for row in rows]), 4).tolist(),
    "cache_bytes": row_bytes(session.caches), "written": []}
  if examples:
    ids_BT = write_greedily(session, max(len(row.answer) for row in rows))
    asked["written"] = [tokenizer.decode(ids_T).decode(errors="replace") for ids_T in ids_BT[:min(examples, len(rows))]]
  return asked


def score_answers(session: Session, answers: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """(nats, whether it is the most likely) of each token of equally long answers; the session does not read them."""
  answers_BG = np.stack([*answers, *[answers[-1]] * (session.batch - len(answers))])
  nll_BG, right_BG = _score(
    session.model, session.variables, session.marker, session.put(answers_BG), session.state)
  return np.asarray(nll_BG)[:len(answers)], np.asarray(right_BG)[:len(answers)]


@functools.partial(jax.jit, static_argnums=0)
def _score(
  model: ModelConfig, variables: Any, marker: Marker | None, answers_BG: jax.Array, state: SessionState,
) -> tuple[jax.Array, jax.Array]:
  decoder, length = Decoder(model), answers_BG.shape[1] - 1
  logits_BGA = state.logits_BA[:, None]
  if length:
    position_BT = state.position_B[:, None] + jnp.arange(length, dtype=jnp.int32)
    segment, _ = marked(marker, answers_BG[:, :-1], make_segment(position_BT), state.previous_BW)
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
