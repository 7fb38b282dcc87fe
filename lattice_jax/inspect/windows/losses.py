"""The loss of the same held-out texts under full attention, under windows, and with a summary of what is far."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.evaluation.bootstrap import interval_of_mean
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.inspect.anchors.readers import Reader, score
from lattice_jax.inspect.anchors.texts import to_batch, window_rows, windows
from lattice_jax.inspect.windows.calibrate import UNIFORM, under
from lattice_jax.inspect.windows.choice import Ladder
from lattice_jax.inspect.windows.prefill import prefill_pairs, score_continuation
from lattice_jax.memories.local.config import window_rows as head_windows
from lattice_jax.memories.local.profile import LocalProfile, with_profile
from lattice_jax.types import Batch

FULL, CHOSEN = "full", "chosen"
PREFILL = "prefill_windows"  # windows while a prompt is read, full attention while decoding
_FIRST_RANGE = 64  # tokens of the first range of positions; each next one ends at twice as many


@dataclass(frozen=True)
class Arm:
  """windows: the choice, or a baseline of the profile, by name; "full" for full attention. far: `model.local.far`.

  reading: under which a prompt is read, where that is another model than the one that decodes.
  """

  windows: str
  far: str
  model: ModelConfig
  reading: ModelConfig | None = None

  @property
  def name(self) -> str:
    return self.windows if self.far == "none" else f"{self.windows} + {self.far}"


def make_arms(loaded: LoadedModel, profile: LocalProfile) -> list[Arm]:
  """Full attention first; then every choice of windows without a summary, and with `model.local.far` if it names one.

  The last has the windows of the baseline "uniform", or of the choice if there is none, while a prompt is read alone.

  Raises ValueError as `with_profile`.
  """
  base = under(loaded.config.model, "local")
  arms = [Arm(FULL, "none", under(base, "attention"))]
  for far in dict.fromkeys(("none", base.local.far)):
    for name in (CHOSEN, *profile.baselines):
      model = with_profile(base, profile, "" if name == CHOSEN else name)
      arms.append(Arm(name, far, dataclasses.replace(model, local=dataclasses.replace(model.local, far=far, maps=""))))
  name = UNIFORM if UNIFORM in profile.baselines else CHOSEN
  reading = next(arm.model for arm in arms if (arm.windows, arm.far) == (name, "none"))
  reading = dataclasses.replace(reading, local=dataclasses.replace(reading.local, picks=0))  # all are kept anyway
  return [*arms, Arm(PREFILL, "none", arms[0].model, reading)]


def row_bytes(arm: Arm, length: int) -> int:
  """Of the keys and values that are kept of a row of so many tokens; without the summary."""
  model = arm.model
  token = np.dtype(model.dtype).itemsize * (model.attention.key_dim + model.attention.value_dim)
  if "local" not in model.pattern:
    return model.layers * model.attention.kv_heads * length * token
  rows = head_windows(model.local, model.layers, model.attention.kv_heads)
  picks = model.layers * model.attention.kv_heads * model.local.picks * token
  return Ladder(model.local.rungs, model.local.sinks, length, token).total(rows) + picks


def measure_losses(
  loaded: LoadedModel, arms: list[Arm], *, split: str, texts: int, seq_len: int, scored: int,
  report: Callable[[str], None],
) -> dict[str, Any]:
  """Nats a token over the last `scored` tokens of each text, read in one call; intervals from resampling texts.

  Raises:
    ValueError: more tokens are to be scored than a text has, or the split has no text of that length.
  """
  if not 0 < scored <= seq_len:
    raise ValueError(f"--scored={scored} must be between 1 and the {seq_len} tokens of a text.")
  source, tokenizer = loaded.read_split(split)
  batch = to_batch(window_rows(windows(source, seq_len, texts)), tokenizer, None)
  nats: dict[str, np.ndarray] = {}
  at_places: dict[str, np.ndarray] = {}
  for arm in arms:
    nll_BT = _score(arm, loaded, batch, seq_len - scored)
    at_places[arm.name] = nll_BT.astype(np.float64)
    nats[arm.name] = at_places[arm.name][:, -scored:].mean(1)
    by_text = ", ".join(f"{value:.4f}" for value in nats[arm.name])
    report(f"{arm.name}: {nats[arm.name].mean():.4f} nats a token; by text {by_text}")
  ranges = position_ranges(seq_len)
  return {
    "split": split, "source": source.name, "texts": len(batch.tokens_BT), "seq_len": seq_len, "scored": scored,
    "ranges": ranges, "removal": removal(nats, arms), "arms": [
      _record(arm, nats, seq_len) | {
        "prefill_pairs": _pairs(arm, seq_len, seq_len - scored),
        "by_position": _by_position(at_places, arm.name, ranges)} for arm in arms]}


def _pairs(arm: Arm, seq_len: int, start: int) -> float | None:
  """`prefill_pairs` of what one call reads: a whole text, or its first `start` tokens; None where these are none."""
  if arm.reading is None:
    return prefill_pairs(arm.model, seq_len)
  return prefill_pairs(arm.reading, start) if start else None


def position_ranges(length: int) -> list[tuple[int, int]]:
  """[low, high) of places in a text, each range as long as all before it."""
  edges = [0, _FIRST_RANGE]
  while edges[-1] < length:
    edges.append(2 * edges[-1])
  edges[-1] = length
  return [(low, high) for low, high in itertools.pairwise(edges) if low < high]


def _score(arm: Arm, loaded: LoadedModel, batch: Batch, start: int) -> np.ndarray:
  """[B, T]: nats of every target; of an arm with a model for reading, those before `start` are a prompt."""
  def read(model: ModelConfig) -> np.ndarray:
    return score(Reader(arm.name, model, loaded.variables, loaded.mesh, is_masked=False), batch, rows=1)[0]

  if arm.reading is None or not start:
    return read(arm.model)
  rest_BT = score_continuation(arm.reading, arm.model, loaded.variables, loaded.mesh, batch, start)
  return np.concatenate([read(arm.reading)[:, :start], rest_BT], axis=1)


def _by_position(
  at_places: Mapping[str, np.ndarray], name: str, ranges: list[tuple[int, int]]) -> list[list[float]] | None:
  """Of each range: nats above full attention and the interval; None where full attention was not measured."""
  if FULL not in at_places:
    return None
  more_BT = at_places[name] - at_places[FULL]
  found = []
  for low, high in ranges:
    more_B = more_BT[:, low:high].mean(1)
    found.append([float(more_B.mean()), *interval_of_mean(more_B)])
  return found


def removal(nats: Mapping[str, np.ndarray], arms: list[Arm]) -> list[dict[str, Any]]:
  """How much the loss rises when the summary is switched off and the windows stay."""
  records = []
  for arm in arms:
    if arm.far == "none":
      continue
    rise_B = nats[arm.windows] - nats[arm.name]
    low, high = interval_of_mean(rise_B)
    records.append({
      "windows": arm.windows, "far": arm.far, "rise": float(rise_B.mean()), "interval": [low, high],
      "verdict": "the summary helps" if low > 0 else "the summary harms" if high < 0 else "it did nothing certain"})
  return records


def _record(arm: Arm, nats: Mapping[str, np.ndarray], seq_len: int) -> dict[str, Any]:
  own_B = nats[arm.name]
  record = {
    "name": arm.name, "windows": arm.windows, "far": arm.far, "bytes": row_bytes(arm, seq_len),
    "by_text": own_B.tolist(), "nats": float(own_B.mean()), "interval": interval_of_mean(own_B)}
  for other, key in ((FULL, "above_full"), (UNIFORM, "above_uniform")):
    if other in nats:
      more_B = own_B - nats[other]
      record[key] = [float(more_B.mean()), *interval_of_mean(more_B)]
  return record
