"""Files of maps that were fitted to a pretrained model: safetensors, of every layer, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lattice_jax.config import ModelConfig
from lattice_jax.files import replace_file
from lattice_jax.formats.json_file import parse_object
from lattice_jax.memories.local.config import SummaryConfig
from lattice_jax.memories.local.maps import from_arrays, map_shapes
from lattice_jax.ops.far_summary import FeatureMaps
from lattice_jax.shown import reason_of, shown

FORMAT = "lattice_jax feature maps 1"
_FACTS = ("format", "model", "weights", "features", "hidden")


@dataclass(frozen=True, eq=False)
class FittedMaps:
  """arrays: by the names that they have in a layer, [L, …] over all layers.

  facts: what the file says of them: model, weights (`Pretrained.digest`), features, hidden, and how they were fitted.
  """

  arrays: Mapping[str, np.ndarray]
  facts: Mapping[str, Any]

  @property
  def summary(self) -> SummaryConfig:
    """The two fields of `model.local.summary` that decide the maps' shapes."""
    return SummaryConfig(features=self.facts["features"], hidden=self.facts["hidden"])

  def of_layers(self, layer_L: np.ndarray) -> FeatureMaps:
    """Of some layers, which stand in front of every array."""
    return from_arrays({name: jnp.asarray(array[layer_L]) for name, array in self.arrays.items()})


def write_maps(path: Path, maps: FittedMaps) -> None:
  """Writes the file that `read_maps` reads, and makes its folder."""
  facts = {"format": FORMAT, **maps.facts}
  path.parent.mkdir(parents=True, exist_ok=True)
  arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in maps.arrays.items()}
  replace_file(path, save(arrays, metadata={"facts": json.dumps(facts)}))


def read_maps(path: Path) -> FittedMaps:
  """The maps in a file.

  Raises:
    ValueError: it is missing or damaged, or is another kind of file.
  """
  try:
    if not path.is_file():
      raise SafetensorError("there is no such file")
    with safe_open(path, framework="numpy") as file:
      metadata, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (SafetensorError, OSError) as error:
    raise ValueError(
      f"the maps {path} cannot be read ({reason_of(error)}); name a file of scripts/fit_far.py, or fit them again."
    ) from error
  facts = parse_object(metadata["facts"].encode(), str(path)) if "facts" in metadata else {}
  missing = [name for name in _FACTS if name not in facts]
  if missing or facts["format"] != FORMAT:
    raise ValueError(f"{path} holds no maps of features ({shown(FORMAT)}); name a file of scripts/fit_far.py.")
  if not all(type(facts[name]) is int and facts[name] > 0 for name in ("features", "hidden")):
    raise ValueError(f"{path} says features={shown(facts['features'])} and hidden={shown(facts['hidden'])}, which must "
                     "be positive whole numbers; fit the maps again.")
  bad = [name for name, array in arrays.items() if array.dtype != np.float32 or not np.isfinite(array).all()]
  if bad:
    raise ValueError(f"{path}: {shown(bad[0])} holds something other than finite float32; fit the maps again.")
  return FittedMaps(arrays, facts)


def check_maps(maps: FittedMaps, model: ModelConfig, weights: str, source: str) -> None:
  """Raises ValueError where maps were fitted to other weights, or have not the shapes that the model needs.

  weights: `Pretrained.digest` of the model. source: of the maps, for messages.
  """
  if maps.facts["weights"] != weights:
    raise ValueError(
      f"{source} was fitted to {shown(maps.facts['model'])} with the weights {shown(maps.facts['weights'])}, and this "
      f"model has {weights}; fit maps to this one with scripts/fit_far.py.")
  wanted = {name: (model.layers, *shape) for name, shape in map_shapes(model.attention, maps.summary).items()}
  found = {name: array.shape for name, array in maps.arrays.items()}
  odd = sorted(dict(wanted.items() ^ found.items()))
  if odd:
    name = odd[0]
    raise ValueError(
      f"{source}: {name} has the shape {found[name] if name in found else 'of nothing'}, and the model needs "
      f"{wanted[name] if name in wanted else 'no such array'}; fit the maps again.")


def read_fitted(model: ModelConfig, weights: str) -> dict[str, np.ndarray]:
  """`Fitted.read` of local attention.

  Raises:
    ValueError: as `read_maps` and `check_maps`; no maps are named, or others than `model.local.summary` says.
  """
  local = model.local
  if local.far != "features":
    return {}
  if not local.maps:
    raise ValueError(
      "model.local.far=features needs maps, which a pretrained model does not have; fit them with scripts/fit_far.py "
      "and name their file, as in model.local.maps=maps.safetensors.")
  source, maps = f"model.local.maps={local.maps}", read_maps(Path(local.maps))
  for name in ("features", "hidden"):
    asked, theirs = getattr(local.summary, name), maps.facts[name]
    if asked != theirs:
      raise ValueError(
        f"{source} was fitted with {name}={theirs}, and model.local.summary.{name}={asked}; use {theirs} there.")
  check_maps(maps, model, weights, source)
  return dict(maps.arrays)
