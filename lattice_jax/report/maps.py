"""The heat maps of a report, from files that other commands left in the workdir, or else which command makes them."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.evaluation.cache_contents import cache_of_map
from lattice_jax.files import read_jsonl, read_object
from lattice_jax.report.workdir import Run

_MOST_COLUMNS = 512  # of a map; more are joined, by their mean or their largest
_LEVELS, _MISSING = 250, 255  # values are sent as bytes: so many levels, and what stands for no value


@dataclass(frozen=True)
class HeatMap:
  """One map for the page. rows: their names, top down. columns: names, or [] for numbers from `first`, `per` of each.

  data: a byte for each value, as base64, of `low` to `high`, on a logarithmic scale if `is_log`. x: what a column is.
  """

  run: int
  title: str
  caption: str
  rows: list[str]
  columns: list[str]
  x: str
  first: float
  per: float
  low: float
  high: float
  is_log: bool
  data: str

  def record(self) -> dict[str, Any]:
    return asdict(self)


@dataclass(frozen=True)
class Kind:
  """One kind of maps. has: whether a run's memories have any. command: what writes the file, in which {run} stands."""

  heading: str
  find: Callable[[int, Run], Iterator[HeatMap]]
  has: Callable[[Sequence[str]], bool]
  command: str


def find_maps(runs: Sequence[Run]) -> dict[str, tuple[list[HeatMap], list[str]]]:
  """By heading: the maps that the workdirs hold, and for the runs that could have some and do not, what makes them.

  Raises ValueError if a file that should hold one is damaged.
  """
  found = {}
  for kind in KINDS:
    maps, commands = [], []
    for index, run in enumerate(runs):
      of_run = list(kind.find(index, run))
      maps += of_run
      if not of_run and kind.has(run.memories):
        commands.append(kind.command.format(run=shlex.quote(str(run.path))))
    if maps or commands:
      found[kind.heading] = maps, commands
  return found


def heat_map(
  values_RN: np.ndarray, *, run: int, title: str, caption: str, rows: Sequence[str], x: str,
  columns: Sequence[str] = (), per: float = 1.0, first: float = 0.0, join: Callable[..., np.ndarray] = np.mean,
  is_log: bool = False, span: tuple[float, float] | None = None,
) -> HeatMap:
  """span: (lowest, highest) value of the scale; by default those of the map."""
  values_RN = np.asarray(values_RN, np.float64)
  size = -(-values_RN.shape[1] // _MOST_COLUMNS)
  if size > 1:
    values_RN = np.stack([join(part, axis=1) for part in np.split(
      values_RN, range(size, values_RN.shape[1], size), axis=1)], axis=1)
  finite = values_RN[np.isfinite(values_RN)]
  low, high = span or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
  high = high if high > low else low + 1.0
  scaled_RN = np.log(np.maximum(values_RN, low) / low) / np.log(high / low) if is_log else (
    (values_RN - low) / (high - low))
  levels_RN = np.where(
    np.isfinite(scaled_RN), np.round(np.clip(np.nan_to_num(scaled_RN), 0, 1) * _LEVELS), _MISSING)
  return HeatMap(
    run=run, title=title, caption=caption, rows=list(rows), columns=list(columns), x=x, first=first, per=per * size,
    low=low, high=high, is_log=is_log, data=base64.b64encode(levels_RN.astype(np.uint8).tobytes()).decode())


def _slots(index: int, run: Run) -> Iterator[HeatMap]:
  for path in sorted(run.path.glob("*/audit.json")):
    audit = read_object(path)
    for layer in audit["layers"]:
      name = f"{run.name}, {layer['name']}"
      turn_THM, keep_THM = (np.array(layer[part], np.float32) for part in ("turn_THM", "keep_THM"))
      tokens, heads, slots = turn_THM.shape
      rows = [f"head {head}, slot {slot}" for head in range(heads) for slot in range(slots)]
      common = {"run": index, "rows": rows, "x": f"token of {audit['text']}"}
      yield heat_map(
        turn_THM.reshape(tokens, -1).T, title=f"{name}: what a token wrote", join=np.max, is_log=True,
        span=(1e-3, max(np.pi / 2, float(turn_THM.max()))),
        caption="How far each token turned each slot, in radians; π/2 replaces the slot.", **common)
      yield heat_map(
        keep_THM.reshape(tokens, -1).T, title=f"{name}: what was kept",
        caption="How much of a slot's direction is left after a token; below one the slot is overwritten.", **common)
      similarity_HMM = np.array(layer["similarity_HMM"], np.float32)
      yield heat_map(
        similarity_HMM.reshape(-1, similarity_HMM.shape[-1]), title=f"{name}: how similar slots are", run=index,
        rows=rows, x="slot of the same head", span=(-1.0, 1.0),
        caption="Cosines of the slots after the last token, heads below one another.")


def _codebooks(index: int, run: Run) -> Iterator[HeatMap]:
  path = run.path / "codebook.json"
  if not path.exists():
    return
  use = read_object(path)
  share_RM = np.array(use["share_RM"])
  relative_RM = np.sort(share_RM, axis=1)[:, ::-1] * share_RM.shape[1]
  yield heat_map(
    relative_RM, run=index, title=f"{run.name}: codebook use at update {use['step']:,}", is_log=True, join=np.max,
    rows=[f"{use['row']} {name}" for name in use["rows"]], x="code, from most to least used", first=1.0,
    span=(1e-2, max(10.0, float(relative_RM.max()))), caption="Use of a code, as a multiple of an even share.")


def _anchors(index: int, run: Run) -> Iterator[HeatMap]:
  for path in sorted(run.path.glob("*/report.json")):
    report = read_object(path)
    attention = report["attention"] if "attention" in report else None
    if attention:
      yield heat_map(
        np.array(attention["by_layer"]), run=index, title=f"{run.name}: which anchors are read", span=(0.0, 1.0),
        rows=[f"layer {layer}" for layer in attention["layers"]], columns=attention["columns"], x="",
        caption="Share of the attention that falls on the own segment, the first token, and anchors by how many "
                f"segments back they lie; {report['facts']['source']}, {report['facts']['split']}.")


def _caches(index: int, run: Run) -> Iterator[HeatMap]:
  for path in sorted(run.path.glob("*/table.jsonl")):
    rows = [row for row in read_jsonl(path) if "cache" in row and row["depth"] is not None]
    if rows:
      yield _depths(index, run, path.parent.name, rows)
  for path in sorted(run.path.glob("*/kept/*.npy")):
    shares_LHN = _load_array(path)
    layers, heads, stretches = shares_LHN.shape
    length = int(path.name.partition("_")[0])
    yield heat_map(
      shares_LHN.reshape(layers * heads, -1), run=index, title=f"{run.name}: what {cache_of_map(path)} keeps",
      rows=[f"layer {layer + 1}, head {head}" for layer in range(layers) for head in range(heads)],
      x="position in the prompt (tokens)", per=length / stretches, span=(0.0, 1.0),
      caption=f"Share of the tokens of each stretch that is still cached; a prompt of {length:,} tokens.")


def _depths(index: int, run: Run, task: str, rows: Sequence[dict[str, Any]]) -> HeatMap:
  caches = list(dict.fromkeys(row["cache"] for row in rows))
  places = sorted({(row["length"], row["depth"]) for row in rows})
  values_RN = np.full((len(caches), len(places)), np.nan)
  for row in rows:
    values_RN[caches.index(row["cache"]), places.index((row["length"], row["depth"]))] = row["token_accuracy"]
  return heat_map(
    values_RN, run=index, title=f"{run.name}: right answers, {task.partition('_')[0]}", rows=caches, x="",
    columns=[f"{length:,} tokens, depth {depth:g}" for length, depth in places], span=(0.0, 1.0),
    caption="Share of answer tokens that are right, by length of the prompt and depth of the needle in it (1: at its "
            "end).")


def _load_array(path: Path) -> np.ndarray:
  try:
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False).astype(np.float32)
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(f"{path} holds no array ({str(error)[:100]}); remove it, and run the task again.") from error


def _names(*memories: str) -> Callable[[Sequence[str]], bool]:
  return lambda pattern: not set(memories).isdisjoint(pattern)


KINDS = (
  Kind("Slots", _slots, _names("lattice"), "python scripts/audit.py --workdir={run} --out={run}/audit"),
  Kind("Codebooks", _codebooks, _names("vq"),
       "python scripts/plot.py --what=codebook {run} --out={run}/codebook.png"),
  Kind("Anchors", _anchors, _names("anchor"), "python scripts/anchors.py --workdir={run} --out={run}/anchors"),
  Kind("Caches", _caches, _names("attention"),
       "python eval.py --workdir={run} --task=passkey --cache=lagkv:ratio=0.25"),
)
