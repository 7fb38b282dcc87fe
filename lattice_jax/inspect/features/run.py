"""Fits the maps of all layers of a pretrained model, and says what that changes on other texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.inspect.features.fit import Near, Sample, fit_layer, layer_error, make_sample, start_maps
from lattice_jax.inspect.local.texts import read_texts
from lattice_jax.inspect.op_inputs import op_inputs, read_op_inputs
from lattice_jax.memories.local.layers import rows
from lattice_jax.memories.local.maps import to_arrays
from lattice_jax.memories.local.maps_file import FittedMaps
from lattice_jax.memories.local.profile import resolve
from lattice_jax.ops.local import ALL
from lattice_jax.types import whole_segment

SPLIT, HELD_OUT = "train", "validation"


@dataclass(frozen=True)
class Sizes:
  """texts, held_out: of the train split, to fit on, and of the validation split, to score; of seq_len tokens each.

  stride: of so many queries one is looked at. steps, rate: of Adam in each layer. seed: of the maps' start.
  """

  texts: int
  held_out: int
  seq_len: int
  stride: int
  steps: int
  rate: float
  seed: int


@dataclass(frozen=True)
class LayerErrors:
  """Relative errors on the texts that are held out: of what is near alone, before the fit, and after it."""

  alone: float
  before: float
  after: float


def fit_maps(
  loaded: LoadedModel, weights: str, sizes: Sizes, *, report: Callable[[str], None],
) -> tuple[FittedMaps, list[LayerErrors]]:
  """Maps of every layer for the windows, sinks and summary of `model.local`, and their errors.

  loaded: under attention to everything. weights: `Pretrained.digest` of it.

  Raises:
    ValueError: the config has picks, no window hides anything, or the splits have no text of that length.
  """
  model = resolve(loaded.config.model)
  local, windows_LH = model.local, rows(model)
  _check(model, windows_LH, sizes)
  nears = [Near.of(windows_H, local.sinks) for windows_H in windows_LH]
  fitting, scoring = (
    _samples(loaded, read_texts(loaded, split, sizes.seq_len, count), nears, sizes.stride)
    for split, count in ((SPLIT, sizes.texts), (HELD_OUT, sizes.held_out)))
  report(f"{len(fitting[0])} texts to fit on, {len(scoring[0])} to score")
  found, errors = [], []
  for layer, near in enumerate(nears):
    # one layer's texts at a time, so that no more than it is in memory twice
    samples, held_out = (jax.tree.map(lambda *x: jnp.stack(x), *each[layer]) for each in (fitting, scoring))
    start = start_maps(
      jax.random.fold_in(jax.random.key(sizes.seed), layer), samples, near, hidden=local.summary.hidden,
      features=local.summary.features)
    share = local.summary.most_share
    maps = fit_layer(start, samples, near, most_share=share, steps=sizes.steps, rate=sizes.rate)
    errors.append(LayerErrors(*(
      float(layer_error(each, held_out, near, most_share=share)) for each in (None, start, maps))))
    found.append(jax.device_get(to_arrays(maps)))
    report(f"layer {layer}: " + _line(errors[-1]))
  mean = LayerErrors(*np.mean([dataclasses.astuple(each) for each in errors], axis=0).tolist())
  report("mean of layers: " + _line(mean))
  arrays = {name: np.stack([each[name] for each in found]) for name in found[0]}
  facts = {
    "model": loaded.config.name, "weights": weights, "features": local.summary.features,
    "hidden": local.summary.hidden, "sinks": local.sinks, "windows": windows_LH, "source": loaded.config.data.source,
    "split": SPLIT, "errors": [dataclasses.asdict(each) for each in errors], **vars(sizes)}
  return FittedMaps(arrays, facts), errors


def _line(errors: LayerErrors) -> str:
  return f"window alone {errors.alone:.4f}, before {errors.before:.4f}, after {errors.after:.4f}"


def _check(model: ModelConfig, windows_LH: tuple[tuple[int, ...], ...], sizes: Sizes) -> None:
  if model.local.picks:
    raise ValueError(
      f"model.local.picks={model.local.picks} is not known to the fit; fit maps with picks=0, and give picks to the "
      "model that uses them.")
  smallest = min((window for row in windows_LH for window in row if window != ALL), default=None)
  if smallest is None or model.local.sinks + smallest >= sizes.seq_len:
    raise ValueError(
      f"texts of --seq_len={sizes.seq_len} tokens are seen whole under model.local.windows="
      f"{','.join(map(str, model.local.windows[:4]))}; use longer texts or smaller windows.")
  if sizes.stride > sizes.seq_len:
    raise ValueError(f"--stride={sizes.stride} looks at no query of --seq_len={sizes.seq_len} tokens; use a smaller.")


def _samples(loaded: LoadedModel, ids_BT: np.ndarray, nears: list[Near], stride: int) -> list[list[Sample]]:
  """Of every layer, its texts; in host memory."""
  model, found = loaded.config.model, [[] for _ in nears]
  for ids_T in ids_BT:
    sown: Any = read_op_inputs(model, loaded.variables, ids_T[None], whole_segment(1, len(ids_T)))
    for layer, near in enumerate(nears):
      inputs = op_inputs(sown, model, layer)
      found[layer].append(jax.device_get(
        make_sample(*(inputs[name][0] for name in ("q", "k", "v")), near, stride=stride)))
  return found
