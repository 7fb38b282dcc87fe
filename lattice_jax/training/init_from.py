"""What a new run starts from: random parameters, or those of `--init_from`, a pretrained model or another workdir.

If `model.origin` is "init_from", as in configs/finetune.py, the model section and the tokenizer come from there too;
otherwise a config that describes another model than the pretrained one is refused. Either way the whole model is taken
over. In the place of its attention only a memory that attends may stand: others have parameters that its files lack.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from lattice_jax.checkpoint import check_tokenizer, load_variables
from lattice_jax.config import Config, DataConfig, ModelConfig
from lattice_jax.config_checks import check_config, resolve
from lattice_jax.data.anchors import token_id
from lattice_jax.data.tokenizers.tokenizer import PRETRAINED, get_tokenizer
from lattice_jax.fields import leaves
from lattice_jax.models.parameters import grow_vocabulary
from lattice_jax.models.pretrained import check_no_file, open_pretrained
from lattice_jax.run_file import read_config
from lattice_jax.sharding import replicated
from lattice_jax.training.state import TrainState

# Fields that have these values are left open by a config of the origin "init_from".
OPEN = Config(model=ModelConfig(origin="init_from", pattern=("attention",), block="mlp"))
# Fields that say how a model is computed or trained, not which model it is.
_FREE = ("origin", "dtype", "remat", "xent_chunk", "impl", "dropout", "layer_drop", "cache", "anchor", "local")
_WHAT = "smollm2, a folder of safetensors, a .gguf file or the workdir of a run"


def complete(config: Config, init_from: str | Path | None) -> Config:
  """The config, with the fields that it leaves open filled in from the model that `init_from` names.

  Raises:
    ValueError: there is no such model or run, or the config contradicts it.
  """
  is_open = config.model.origin == "init_from"
  if init_from is None:
    if is_open:
      raise ValueError(f"this config takes its model from --init_from, which is missing; name {_WHAT}.")
    return config
  if _is_workdir(init_from) and not is_open:
    return config  # restoring compares the shapes of its parameters
  theirs, tokenizer = _describe(init_from)
  if not _is_workdir(init_from):
    theirs = _with_anchor(theirs, dataclasses.replace(config.data, tokenizer=tokenizer))
    if is_open and config.model.pattern != OPEN.model.pattern:
      theirs = open_pretrained(init_from).with_memories(
        dataclasses.replace(theirs, pattern=config.model.pattern)).model
  for (field, _, ours), (*_, open_value), (*_, their_value) in zip(
      leaves(config.model, "model."), leaves(OPEN.model), leaves(theirs), strict=True):
    if field.split(".")[1] in _FREE:
      continue
    if ours != their_value and not (is_open and ours == open_value):
      raise ValueError(
        f"{field}={_shown(ours)} is not what the model of --init_from={init_from} has, {_shown(their_value)}; "
        "leave it out with --config=configs/finetune.py, which takes the whole model from there.")
  if config.data.tokenizer != tokenizer and not (is_open and config.data.tokenizer == OPEN.data.tokenizer):
    raise ValueError(
      f"data.tokenizer={config.data.tokenizer} is not that of --init_from={init_from}; use data.tokenizer={tokenizer}.")
  free = {name: getattr(config.model, name) for name in _FREE}
  completed = resolve(dataclasses.replace(
    config, model=dataclasses.replace(theirs, **free | {"origin": "config"}),
    data=dataclasses.replace(config.data, tokenizer=tokenizer)))
  check_config(completed)
  return completed


def load_start(config: Config, init_from: str | Path | None, abstract: TrainState) -> tuple[dict[str, Any], str]:
  """(the parameters and buffers to start with, sharded like `abstract`; where they come from, in words).

  Raises:
    ValueError: they cannot be read, do not fit, or were trained with another tokenizer model of the same name; or a
      file is given for parameters that a pretrained model lacks, and this is none.
  """
  if init_from is None or _is_workdir(init_from):
    check_no_file(config.model)
  if init_from is None:
    return {}, "from random parameters"
  if not _is_workdir(init_from):
    return {"params": _pretrained_params(config, init_from, abstract.params)}, f"from the pretrained model {init_from}"
  workdir = Path(init_from).expanduser()
  if (workdir / "run.json").is_file():
    check_tokenizer(workdir, config.data)
  step, variables = load_variables(workdir, {"params": abstract.params, "buffers": abstract.buffers})
  return variables, f"from the parameters of {init_from} at step {step}"


def _with_anchor(model: ModelConfig, data: DataConfig) -> ModelConfig:
  """The model with a row for the token that `data.anchors.insert` adds, if it has none."""
  if data.anchors.insert == "none":
    return model
  return dataclasses.replace(model, vocab=max(model.vocab, get_tokenizer(data).vocab_size))


def _pretrained_params(config: Config, name: str | Path, abstract: Any) -> Any:
  """The parameters, sharded like `abstract`; the rows that they lack start as `data.anchors.start` says."""
  pretrained, mesh = open_pretrained(name), jax.tree.leaves(abstract)[0].sharding.mesh
  if config.model.pattern != pretrained.model.pattern:
    pretrained = pretrained.with_memories(dataclasses.replace(pretrained.model, pattern=config.model.pattern))
  pretrained = pretrained.with_fitted(config.model)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  if pretrained.model.vocab >= config.model.vocab:
    return pretrained.params(shardings)
  start, like = config.data.anchors.start, None
  if start != "mean":
    like = token_id(get_tokenizer(config.data), start)
    if like is None:
      raise ValueError(
        f"data.anchors.start={start}: data.tokenizer={config.data.tokenizer} has no such token; use mean, or one that "
        "it has.")
  is_whole = jax.tree.map(lambda leaf, shape: leaf.shape != shape.shape, abstract, pretrained.shapes)
  params = pretrained.params(
    jax.tree.map(lambda sharding, whole: replicated(mesh) if whole else sharding, shardings, is_whole))
  grow = functools.partial(grow_vocabulary, vocab=config.model.vocab, like=like)
  return jax.jit(grow, out_shardings=shardings)(params)


def _is_workdir(name: str | Path) -> bool:
  path = Path(name).expanduser()
  return (path / "run.json").exists() or (path / "checkpoints").exists()


def _describe(init_from: str | Path) -> tuple[ModelConfig, str]:
  """(the model, its tokenizer)."""
  if _is_workdir(init_from):
    config = read_config(Path(init_from).expanduser())
    return config.model, config.data.tokenizer
  try:
    pretrained = open_pretrained(init_from)
  except ValueError as error:
    raise ValueError(f"--init_from={init_from} must be {_WHAT}: {error}") from error
  return dataclasses.replace(pretrained.model, context_len=pretrained.context_len), f"{PRETRAINED}{init_from}"


def _shown(value: Any) -> str:
  return ",".join(value) if isinstance(value, tuple) else str(value)
