"""A profile of windows for a model's heads, from what they lose on calibration texts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.config import ModelConfig
from lattice_jax.evaluation.loaded_model import LoadedModel, load_pretrained_model, load_run
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.inspect.anchors.texts import windows
from lattice_jax.inspect.op_inputs import op_inputs, read_op_inputs
from lattice_jax.inspect.windows.choice import Ladder, Step, alike, choose_windows, keep_retrieval_heads
from lattice_jax.inspect.windows.errors import HeadErrors, head_errors, rungs_of, with_everything
from lattice_jax.inspect.windows.weights import layer_weights
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.memories.local.maps import from_arrays
from lattice_jax.memories.local.profile import LocalProfile
from lattice_jax.ops.local import ALL
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.types import whole_segment

UNIFORM, RETRIEVAL = "uniform", "retrieval_heads"
_MEMORIES = {"attention", "local"}


@dataclass(frozen=True)
class Sizes:
  """texts, seq_len: to read, of which every `stride`-th query of the second half is looked at.

  weighed: tokens of the text from which the layers' weights are found; 0 = all layers weigh the same.
  """

  texts: int
  seq_len: int
  stride: int
  weighed: int


@dataclass(frozen=True, eq=False)
class Calibration:
  """Of each rung but the whole document, layer and head. far, alone: with the summary that is configured, and without.

  weight_L: nats for each unit of squared error of a layer's output. whole_L: squared length of that output.
  """

  far: HeadErrors
  alone: HeadErrors
  weight_L: np.ndarray
  whole_L: np.ndarray

  @property
  def error_RLH(self) -> np.ndarray:
    """Estimated nats a token that are lost by one head's window, the whole document as the last rung."""
    return with_everything(self.far.square_RH * self.weight_L[:, None])


def load_model(*, pretrained: str | None, workdir: Path | None, overrides: Sequence[str]) -> LoadedModel:
  """The pretrained model, or the newest checkpoint of a run, in float32 under local attention.

  Raises:
    ValueError: there is no such model, it has layers that are no attention over all earlier tokens, or it has not the
      maps that its summary needs.
  """
  overrides = ["model.dtype=float32", *overrides]
  if pretrained is not None:
    loaded = load_pretrained_model(pretrained, workdir=None, dtype="float32", overrides=overrides)
  else:
    loaded = load_run(workdir, step=None, overrides=overrides)
  model = loaded.config.model
  if not set(model.pattern) <= _MEMORIES or model.attention.window:
    raise ValueError(
      f"model.pattern={','.join(model.pattern)} with model.attention.window={model.attention.window} is not attention "
      "over all earlier tokens in every layer, whose windows could be chosen; give a run of 'attention' or 'local'.")
  if model.local.far == "features" and "local" not in model.pattern:
    raise ValueError(
      "model.local.far=features is made by maps, which are parameters of the memory local alone; give "
      "model.pattern=local as well.")
  return loaded


def under(model: ModelConfig, memory: str) -> ModelConfig:
  """The same layers under "attention", which sees everything, or "local"."""
  return dataclasses.replace(model, pattern=(memory,) * len(model.pattern))


def measure_heads(
  loaded: LoadedModel, sizes: Sizes, *, split: str = "train", report: Callable[[str], None] = lambda line: None,
) -> Calibration:
  """What each head loses by each rung of `model.local`, mean over texts of a split that are spread evenly.

  Raises:
    ValueError: the split has no text of that length, no rung hides anything of one, or the config has picks.
  """
  model, local = under(loaded.config.model, "attention"), loaded.config.model.local
  if local.picks:
    raise ValueError(
      f"model.local.picks={local.picks} is not known to the choice of windows; choose them with picks=0, and give "
      "picks to the model that uses the profile.")
  rungs = rungs_of(local, sizes.seq_len)[:-1]
  if not rungs:
    raise ValueError(
      f"texts of --seq_len={sizes.seq_len} tokens are seen whole in every window of model.local.rungs; use longer "
      "texts or a smaller rung.")
  source, tokenizer = loaded.read_split(split)
  ids_BT = windows(source, sizes.seq_len, sizes.texts)
  ids_BT = np.concatenate([np.full((len(ids_BT), 1), tokenizer.eos_id), ids_BT[:, :-1]], axis=1).astype(np.int32)
  settings = [
    dataclasses.replace(local, rungs=rungs, windows=rungs[:1], far=far, maps="") for far in (local.far, "none")]
  found: list[list[list[HeadErrors]]] = [[], []]
  for number, ids_T in enumerate(ids_BT):
    for each, errors in zip(found, _of_text(model, loaded, settings, ids_T, sizes), strict=True):
      each.append(errors)
    report(f"text {number + 1} of {len(ids_BT)}: {rungs} in {model.layers} layers")
  weight_L = np.ones(model.layers)
  if sizes.weighed:
    weight_L = layer_weights(model, loaded.variables, ids_BT[:1, :sizes.weighed + 1])
    report("weights of the layers: " + ", ".join(f"{weight:.2g}" for weight in weight_L))
  far, alone = (_mean(each) for each in found)
  return Calibration(far=far, alone=alone, weight_L=weight_L, whole_L=far.whole)


def make_profile(
  loaded: LoadedModel, calibration: Calibration, *, budget: int, context: int,
) -> tuple[LocalProfile, list[Step]]:
  """The profile whose heads keep no more bytes than windows of `budget` tokens in all heads, and how it came about.

  Raises:
    ValueError: the budget is no rung that was measured, or as `choose_windows`.
  """
  model, local = loaded.config.model, loaded.config.model.local
  attention, rungs = model.attention, rungs_of(local, 2**30)
  measured = (*rungs[:len(calibration.alone.mass_RH)], ALL)
  if budget not in measured[:-1]:
    raise ValueError(
      f"--budget={budget} is a window for which no error was measured; use one of "
      f"{', '.join(map(str, measured[:-1]))}, or texts for which there are more rungs.")
  token_bytes = np.dtype(model.dtype).itemsize * (attention.key_dim + attention.value_dim)
  ladder = Ladder(measured, local.sinks, context, token_bytes)
  uniform = alike(budget, model.layers, attention.kv_heads)
  rows, steps = choose_windows(calibration.error_RLH, ladder, ladder.total(uniform))
  retrieval = keep_retrieval_heads(1 - calibration.alone.mass_RH[0], ladder, ladder.total(uniform))
  profile = LocalProfile(
    model=loaded.config.name, sinks=local.sinks, rungs=local.rungs, windows=rows,
    baselines={UNIFORM: uniform, RETRIEVAL: retrieval})
  return profile, steps


def write_log(path: Path, steps: Sequence[Step], facts: dict[str, object]) -> None:
  """One line of facts, then one of each step, as JSON."""
  lines = [facts, *map(dataclasses.asdict, steps)]
  write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _of_text(
  model: ModelConfig, loaded: LoadedModel, settings: Sequence[LocalConfig], ids_T: np.ndarray, sizes: Sizes,
) -> list[HeadErrors]:
  """For each setting the errors of all layers, [R, L, H]; a setting that was met before is not measured again."""
  sown = read_op_inputs(model, loaded.variables, ids_T[None], whole_segment(1, len(ids_T)))
  first = sizes.seq_len // 2 + (sizes.seq_len - 1 - sizes.seq_len // 2) % sizes.stride
  done: dict[LocalConfig, HeadErrors] = {}
  for setting in dict.fromkeys(settings):
    layers = []
    for layer in range(model.layers):
      inputs, own = op_inputs(sown, model, layer), _memory(model, loaded.variables["params"], layer)
      layers.append(jax.device_get(head_errors(
        setting, inputs["q"], inputs["k"], inputs["v"], _out_weight(model, own["out"]),
        from_arrays(own) if setting.far == "features" else None, first=first, stride=sizes.stride)))
    by_head = {
      name: np.stack([getattr(each, name) for each in layers], axis=1)
      for name in ("mass_RH", "relative_RH", "square_RH")}
    done[setting] = HeadErrors(**by_head, whole=np.stack([each.whole for each in layers]))
  return [done[setting] for setting in settings]


def _memory(model: ModelConfig, params: dict[str, Any], layer: int) -> dict[str, Any]:
  """The parameters of a layer's memory."""
  group, block = divmod(layer, len(model.pattern))
  stacks = params["groups"] if "groups" in params else params[f"group_{group}"]
  found = stacks[f"block_{block}"]["memory"]
  return jax.tree.map(lambda leaf: leaf[group], found) if "groups" in params else found


def _out_weight(model: ModelConfig, stored: Any) -> jax.Array:
  """[Q, V, D]: by which a layer's heads become its output."""
  shape = model.attention.heads, model.attention.value_dim, model.dim
  array = stored.array((shape[0] * shape[1], model.dim)) if isinstance(stored, StoredWeight) else jnp.asarray(stored)
  return array.reshape(shape)


def _mean(texts: Sequence[HeadErrors]) -> HeadErrors:
  return jax.tree.map(lambda *x: np.mean(np.asarray(x, np.float64), axis=0), *texts)
