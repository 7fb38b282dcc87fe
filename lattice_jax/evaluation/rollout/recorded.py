"""Recorded units: what was asked and what was answered, out of a file, or stretches of a text; and canaries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.data.hashing import hashed_integers
from lattice_jax.data.source import fingerprint
from lattice_jax.data.tokenizers.tokenizer import Tokenizer
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.retrieval.prompts import Haystack, PromptSizes, passkey

_CANARY_DIGITS = 5
_NEAREST, _FARTHEST = 0.05, 0.8  # where in the prompt a canary's number stands: not at its end, which any cache keeps
_OWN_KEY = 7_201  # tells the draws of this file from others with the same seed


@dataclass(frozen=True, eq=False)
class RecordedUnit:
  """name: by which the unit is assigned. answer_T: what both arms are given to read after the prompt."""

  name: str
  prompt_T: np.ndarray
  answer_T: np.ndarray


@dataclass(frozen=True, eq=False)
class RecordedCanary:
  """As a unit. scored_T: which tokens of the answer count; the space before it does not."""

  name: str
  prompt_T: np.ndarray
  answer_T: np.ndarray
  scored_T: np.ndarray


@dataclass(frozen=True, eq=False)
class Recording:
  """count: of units; None for any number. unit_at, canary_at: the unit, the canary of a number from 0 on.

  longest: tokens of the longest unit or canary with its answer. fingerprint: of all that they are made of.
  """

  count: int | None
  unit_at: Callable[[int], RecordedUnit]
  canary_at: Callable[[int], RecordedCanary]
  longest: int
  fingerprint: str


def open_recording(
  loaded: LoadedModel, prompts: str, *, split: str, prompt_len: int, answer_len: int, canary_len: int, seed: int,
) -> Recording:
  """Units of a .jsonl file with `prompt`, `answer` and perhaps `id` in each line, or of a split of the model's text.

  A unit of a text is a stretch of prompt_len and answer_len tokens; each is drawn anew, from all places of the split.

  Raises:
    ValueError: the file cannot be read, a line lacks something, or what is read is longer than the model's context.
  """
  source, tokenizer = loaded.read_split(split)
  text_ids = np.asarray(source.tokens)
  if prompts.endswith(".jsonl"):
    units, print_of_units = _read_file(Path(prompts), tokenizer, answer_len)
    count, unit_at = len(units), units.__getitem__
    longest = max(len(unit.prompt_T) + len(unit.answer_T) for unit in units)
  else:
    count, unit_at, print_of_units = None, _stretches(
      text_ids, source.offsets, tokenizer, f"{prompts}/{split}", prompt_len, answer_len, seed), source.fingerprint
    longest = len(tokenizer.start_ids) + prompt_len + answer_len

  def canary_at(index: int) -> RecordedCanary:
    share = int(hashed_integers(1, _OWN_KEY, seed, index, 1)[0]) / 2**64
    sizes = PromptSizes(canary_len, _CANARY_DIGITS, _NEAREST + (_FARTHEST - _NEAREST) * share)
    prompt = passkey(Haystack(tokenizer, text_ids, trial=index, seed=seed), sizes)
    scored_T = np.array([bool(tokenizer.decode(prompt.answer[n:n + 1]).strip()) for n in range(len(prompt.answer))])
    return RecordedCanary(f"canary/{index:06d}", prompt.tokens, prompt.answer, scored_T)

  longest = max(longest, canary_len + len(canary_at(0).answer_T) + _CANARY_DIGITS)
  if loaded.context_len is not None and longest > loaded.context_len:
    raise ValueError(
      f"the longest unit and answer have {longest:,} tokens, more than the {loaded.context_len:,} that "
      f"{loaded.config.name} was made for; use smaller --prompt_len, --answer_len and --canary_len.")
  return Recording(count, unit_at, canary_at, longest, fingerprint(print_of_units, source.fingerprint))


def _stretches(
  text_ids: np.ndarray, offsets: np.ndarray, tokenizer: Tokenizer, name: str, prompt_len: int, answer_len: int,
  seed: int,
) -> Callable[[int], RecordedUnit]:
  """Every place of the text at which a whole stretch of one document begins is equally likely."""
  length, start_ids = prompt_len + answer_len, np.array(tokenizer.start_ids, np.int32)
  places = np.maximum(np.diff(offsets) - length + 1, 0)
  if not places.sum():
    raise ValueError(f"no document of {name} has {length:,} tokens; use smaller --prompt_len and --answer_len.")
  before = np.cumsum(places) - places

  def unit_at(index: int) -> RecordedUnit:
    place = int(hashed_integers(1, _OWN_KEY, seed, index)[0] % np.uint64(places.sum()))
    document = int(np.searchsorted(before, place, side="right")) - 1
    start = int(offsets[document]) + place - int(before[document])
    ids_T = text_ids[start:start + length].astype(np.int32)
    return RecordedUnit(f"{name}/{index:06d}", np.concatenate([start_ids, ids_T[:prompt_len]]), ids_T[prompt_len:])

  return unit_at


def _read_file(path: Path, tokenizer: Tokenizer, answer_len: int) -> tuple[list[RecordedUnit], str]:
  """(the units of a file, its fingerprint)."""
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise ValueError(f"the prompts {path} cannot be read ({error.strerror}); give a .jsonl file.") from error
  units, start_ids = [], np.array(tokenizer.start_ids, np.int32)
  for number, line in enumerate(raw.splitlines(), start=1):
    record = _record(line)
    if record is None or not record["prompt"] or not record["answer"]:
      raise ValueError(
        f"line {number} of {path} is no recorded unit; each line is a JSON object with the texts prompt and answer, "
        "and perhaps id.")
    prompt_T, answer_T = (tokenizer.encode(record[part].encode()).astype(np.int32) for part in ("prompt", "answer"))
    units.append(RecordedUnit(
      str(record["id"]) if "id" in record else f"{path.name}/{number:06d}", np.concatenate([start_ids, prompt_T]),
      answer_T[:answer_len]))
  names = [unit.name for unit in units]
  if not units or len(set(names)) < len(names):
    raise ValueError(f"{path} holds {'two units of the same id' if units else 'no unit'}; each unit needs its own line "
                     "and id.")
  return units, fingerprint(raw)


def _record(line: bytes) -> dict[str, Any] | None:
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):
    return None
  is_unit = isinstance(record, dict) and all(_is_text(record.get(name)) for name in ("prompt", "answer"))
  return record if is_unit else None


def _is_text(value: Any) -> bool:
  """A text that UTF-8 can hold: JSON can name half of a character."""
  return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
