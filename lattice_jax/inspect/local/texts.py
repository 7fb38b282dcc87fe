"""The texts of a report on local attention, and what a model's layers make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.evaluation.loaded_model import LoadedModel, load_pretrained_model, load_run
from lattice_jax.inspect.anchors.texts import windows
from lattice_jax.inspect.local.arms import Heads
from lattice_jax.inspect.local.stream import Inputs
from lattice_jax.inspect.op_inputs import op_inputs, read_op_inputs
from lattice_jax.memories.local.maps_file import FittedMaps, check_maps, read_maps
from lattice_jax.models.pretrained import open_pretrained
from lattice_jax.types import whole_segment

ROWS = 10  # layers that are compared in one call


def load_model(*, pretrained: str | None, workdir: Path | None, overrides: Sequence[str] = ()) -> LoadedModel:
  """The pretrained model, or the newest checkpoint of a run, in float32.

  Raises:
    ValueError: there is no such model, or not all its layers are softmax attention over all earlier tokens.
  """
  overrides = ["model.dtype=float32", *overrides]
  if pretrained is not None:
    loaded = load_pretrained_model(pretrained, workdir=None, dtype="float32", overrides=overrides)
  else:
    loaded = load_run(workdir, step=None, overrides=overrides)
  model = loaded.config.model
  if set(model.pattern) != {"attention"} or model.attention.window:
    raise ValueError(
      f"model.pattern={','.join(model.pattern)} with model.attention.window={model.attention.window} does not see all "
      "earlier tokens in every layer, and that is what is compared with; give a run whose pattern is 'attention', "
      "without a window.")
  return loaded


def read_fitted(loaded: LoadedModel, pretrained: str | None, files: Sequence[Path]) -> list[FittedMaps]:
  """The maps in files that were fitted to this pretrained model. Raises ValueError as `read_maps` and `check_maps`."""
  found = [read_maps(file) for file in files]
  for file, maps in zip(files, found, strict=True):
    check_maps(maps, loaded.config.model, open_pretrained(pretrained).digest, str(file))
  return found


def heads_of(loaded: LoadedModel) -> Heads:
  attention = loaded.config.model.attention
  return Heads(
    attention.kv_heads, attention.heads // attention.kv_heads, attention.key_dim, attention.value_dim)


def read_texts(loaded: LoadedModel, split: str, length: int, count: int) -> np.ndarray:
  """[B, T] tokens of `count` texts, evenly spread over the split, each after an end-of-text token."""
  source, tokenizer = loaded.read_split(split)
  ids_BT = windows(source, length, count)
  return np.concatenate([np.full((len(ids_BT), 1), tokenizer.eos_id), ids_BT[:, :-1]], axis=1).astype(np.int32)


def read_layers(loaded: LoadedModel, ids_T: np.ndarray, *, every: int = 1) -> Iterator[Inputs]:
  """What the layers give to their attention on one text, at most `ROWS` layers at a time; `every`: of so many, one."""
  model = loaded.config.model
  sown = read_op_inputs(model, loaded.variables, ids_T[None], whole_segment(1, len(ids_T)))
  layers = range(0, model.layers, every)
  for start in range(0, len(layers), ROWS):
    some = layers[start:start + ROWS]
    found = [op_inputs(sown, model, layer) for layer in some]
    yield Inputs(*jax.tree.map(
      lambda *x: jnp.concatenate(x), *((each["q"], each["k"], each["v"]) for each in found)), layer_L=np.array(some))
