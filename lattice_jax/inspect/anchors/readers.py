"""The models that a report on anchors compares: one set of weights under full attention and under the mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lattice_jax.anchor_rule import parse_rule
from lattice_jax.config import ModelConfig
from lattice_jax.config_checks import check_config
from lattice_jax.data.source import fingerprint
from lattice_jax.data.tokenizers.tokenizer import get_tokenizer
from lattice_jax.evaluation.compiled import EvalShapes, compile_evaluation
from lattice_jax.evaluation.loaded_model import LoadedModel, load_pretrained_model, load_run
from lattice_jax.sharding import put_batch
from lattice_jax.types import Batch, Segment, slice_time

FULL, MASKED = "full", "masked"
_ANCHOR, _ATTENTION = "anchor", "attention"


@dataclass(frozen=True, eq=False)
class Reader:
  """A model that reads. is_masked: closed segments are seen by their anchors alone."""

  name: str
  model: ModelConfig
  variables: Any
  mesh: Mesh
  is_masked: bool


def load_model(
  *, pretrained: str | None, workdir: Path | None, rule: str | None, overrides: Sequence[str] = (),
) -> LoadedModel:
  """The pretrained model, or the newest checkpoint of a run, in float32 and with a rule for anchors.

  rule: by default the run's own, or else punctuation.

  Raises:
    ValueError: there is no such model, or the rule marks nothing.
  """
  overrides = ["model.dtype=float32", *overrides]
  if rule is not None and parse_rule(rule, "--anchors").name == "none":
    raise ValueError("--anchors=none marks no token, so there is nothing to report on; use --anchors=punctuation.")
  if pretrained is not None:
    if not any(override.startswith("model.pattern=") for override in overrides):
      overrides.append(f"model.pattern={_ANCHOR}")
    loaded = load_pretrained_model(pretrained, workdir=None, dtype="float32", overrides=overrides)
  else:
    loaded = load_run(workdir, step=None, overrides=overrides)
  own = loaded.config.data.anchors
  chosen = dataclasses.replace(own, rule=rule or (own.rule if own.rule != "none" else "punctuation"))
  config = dataclasses.replace(loaded.config, data=dataclasses.replace(loaded.config.data, anchors=chosen))
  check_config(config)
  return dataclasses.replace(loaded, config=config)


def is_trained(loaded: LoadedModel) -> bool:
  """Whether the model learned under the mask."""
  return loaded.step is not None and _ANCHOR in loaded.config.model.pattern


def make_readers(loaded: LoadedModel, after: LoadedModel | None = None) -> list[Reader]:
  """Full attention and the mask, of the model and of `after`.

  Raises:
    ValueError: a model has no attention, or the two do not read the same tokens.
  """
  readers = _pair(loaded, "")
  if after is None:
    return readers
  if _vocabulary(loaded) != _vocabulary(after):
    raise ValueError(
      f"{after.config.name} reads other tokens than {loaded.config.name}; give --after a run that was trained on from "
      "the same model.")
  return readers + _pair(after, "after: ")


def _pair(loaded: LoadedModel, prefix: str) -> list[Reader]:
  pattern = loaded.config.model.pattern
  if not {_ANCHOR, _ATTENTION} & set(pattern):
    raise ValueError(
      f"model.pattern={','.join(pattern)} has no attention that anchors could stand for; give a run whose pattern "
      f"names '{_ANCHOR}' or '{_ATTENTION}'.")

  def reader(name: str, memory: str) -> Reader:
    # one whose pattern names both was made so: attention stays where it is
    replaced = (_ANCHOR,) if _ANCHOR in pattern else (_ATTENTION,)
    changed = tuple(memory if own in replaced else own for own in pattern)
    model = dataclasses.replace(loaded.config.model, pattern=changed)
    return Reader(prefix + name, model, loaded.variables, loaded.mesh, is_masked=memory == _ANCHOR)

  return [reader(FULL, _ATTENTION), reader(MASKED, _ANCHOR)]


def _vocabulary(loaded: LoadedModel) -> str:
  tokenizer = get_tokenizer(loaded.config.data)
  return fingerprint(tokenizer.decode(np.arange(tokenizer.vocab_size)))


def score(
  reader: Reader, batch: Batch, *, rows: int, chunk_len: int = 0, has_answers: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """(nats of each target, whether it is the most likely), [B, T]; the second is None without `has_answers`.

  chunk_len: tokens of a call, the cache carried between calls; 0 = all in one call without a cache. rows: of a call.
  """
  length = batch.tokens_BT.shape[1]
  step_len = chunk_len or length
  rows = -(-min(rows, len(batch.tokens_BT)) // reader.mesh.shape["data"]) * reader.mesh.shape["data"]
  shapes = EvalShapes(
    batch=rows, chunk_len=step_len, max_len=length if chunk_len else 0, has_answers=has_answers)
  step, make_state = compile_evaluation(reader.model, shapes, reader.mesh, reader.variables)
  nll, right = [], []
  for first in range(0, len(batch.tokens_BT), rows):
    part, state, calls = _rows(batch, first, rows), make_state(), []
    for start in range(0, length, step_len):
      chunk = put_batch(_columns(part, start, step_len), reader.mesh, rows=rows)
      state, (nll_BT, right_BT, _) = step(reader.variables, state, chunk)
      calls.append((nll_BT, right_BT))
    nll.append(np.concatenate([np.asarray(call[0]) for call in calls], axis=1)[:, :length])
    if has_answers:
      right.append(np.concatenate([np.asarray(call[1]) for call in calls], axis=1)[:, :length])
  count = len(batch.tokens_BT)
  return np.concatenate(nll)[:count], np.concatenate(right)[:count] if has_answers else None


def _rows(batch: Batch, first: int, count: int) -> Batch:
  """Rows [first, first + count); those beyond the last are empty."""
  def take(x_BT: np.ndarray) -> np.ndarray:
    part_BT = x_BT[first:first + count]
    return np.pad(part_BT, ((0, count - len(part_BT)), (0, 0)))

  return _map_rows(take, batch)


def _columns(batch: Batch, start: int, count: int) -> Batch:
  """Tokens [start, start + count); those beyond the last are not valid."""
  def pad(x_BT: np.ndarray) -> np.ndarray:
    return np.pad(x_BT, ((0, 0), (0, count - x_BT.shape[1])))

  cut: Segment = slice_time(batch.segment, start, start + count)
  tokens, targets, weights = (
    x_BT[:, start:start + count] for x_BT in (batch.tokens_BT, batch.targets_BT, batch.weights_BT))
  return _map_rows(pad, Batch(
    tokens_BT=tokens, targets_BT=targets, weights_BT=weights, segment=cut, sequence=batch.sequence))


def _map_rows(change: Any, batch: Batch) -> Batch:
  return jax.tree.map(lambda x: change(x) if np.ndim(x) else x, batch)
