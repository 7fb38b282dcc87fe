"""From ConfigDict to frozen dataclasses: every check, in one style of error.

`default_config()` gives the locked ConfigDict that files under `configs/` edit; `parse_config()` turns the edited
one into `config.Config` and refuses what cannot run.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from typing import Any

import ml_collections

from lattice_jax.cache.policy import BUDGETS, POLICIES, check_cache
from lattice_jax.config import Config, ModelConfig
from lattice_jax.layers.registry import MEMORIES
from lattice_jax.ops import lattice, vq

CHOICES = {
  "model.origin": ("config", "init_from"),
  "model.block": ("gau", "mlp"),
  "model.mlp": ("swiglu", "squared_relu"),
  "model.dtype": ("float32", "bfloat16"),
  "model.attention.bias": ("none", "qkv", "all"),
  "model.cache.policy": POLICIES,
  "model.cache.budget": BUDGETS,
  "model.attention.rope_scaling.kind": ("none", "linear", "llama3", "yarn"),
  "model.vq.reduction": ("auto", *vq.FORMS),
  "model.lattice.objective": lattice.OBJECTIVES,
  "model.lattice.state": lattice.STATES,
  "model.lattice.form": lattice.FORMS,
  "model.remat": ("none", "full", "boundary"),
  "model.impl": ("auto", "reference", "xla", "pallas", "interpret"),
  "data.rows": ("sequences", "documents", "packed"),
  "optimizer.name": ("adamw", "lion", "adafactor"),
  "optimizer.schedule": ("cosine", "linear", "constant"),
  "optimizer.decay": ("scaled", "independent"),
  "eval.protocol": ("cold", "carried", "both"),
  "eval.split": ("train", "validation", "test"),
}
POSITIVE = (
  "model.vocab", "model.dim", "model.layers", "model.mlp_dim", "model.norm_eps", "model.xent_chunk",
  "model.attention.heads", "model.attention.kv_heads", "model.attention.key_dim", "model.attention.value_dim",
  "model.attention.rope_scaling.factor", "model.attention.rope_scaling.original_len",
  "model.attention.rope_scaling.gain", "model.cache.lag", "model.cache.observe", "model.cache.pool",
  "model.cache.epsilon",
  "model.lattice.slots", "model.lattice.max_step", "model.lattice.chunk_len",
  "model.baseline.key_dim", "model.baseline.slots", "model.baseline.chunk_len", "model.baseline.gate_rank",
  "model.baseline.mini_batch", "model.baseline.inner_rate",
  "model.vq.heads", "model.vq.kv_heads", "model.vq.key_dim", "model.vq.value_dim", "model.vq.codes",
  "model.vq.block_len", "data.seq_len", "data.update_len", "data.batch", "data.recall.pairs",
  "data.recall.fewest_pairs", "data.recall.power", "optimizer.learning_rate", "train.steps", "train.accumulate",
  "train.steps_per_dispatch", "train.log_every", "train.save_every", "train.keep_last",
  "eval.batch", "mesh.model",
)
FRACTIONS = (
  "model.dropout", "model.layer_drop", "model.cache.drift", "model.vq.sinusoid_dropout", "model.vq.ema_rate",
  "model.vq.revive_below")


def default_config() -> ml_collections.ConfigDict:
  """Every field with its default, as a ConfigDict whose fields cannot be misspelt."""
  return _as_config_dict(Config()).lock()


def parse_config(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
  """The frozen form of a config, checked field by field and across sections.

  Raises:
    ValueError: a field is unknown, has the wrong type, or contradicts another; the message says what to change.
  """
  raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
  parsed = _build(Config, raw, "")
  check_config(parsed)
  return parsed


def to_dict(config: Config) -> dict[str, Any]:
  """A JSON-ready copy; `parse_config` takes it back."""
  return dataclasses.asdict(config)


def check_config(config: Config) -> None:
  """Every rule that a type cannot express. Raises ValueError."""
  for path, allowed in CHOICES.items():
    value = _get(config, path)
    if value not in allowed:
      raise ValueError(f"{path}={value!r} is not one of {', '.join(allowed)}.{_did_you_mean(str(value), allowed)}")
  for path in POSITIVE:
    if not 0 < _get(config, path) < math.inf:  # which NaN is not either
      raise ValueError(f"{path}={_get(config, path)} must be positive and finite.")
  for path in FRACTIONS:
    if not 0 <= _get(config, path) < 1:
      raise ValueError(f"{path}={_get(config, path)} must lie in [0, 1).")
  _check_model(config.model)
  _check_cache(config.model)
  _check_lengths(config)


def _check_model(model: ModelConfig) -> None:
  for name in model.pattern:
    if name not in MEMORIES:
      raise ValueError(
        f"model.pattern names {name!r}; known memories: {', '.join(sorted(MEMORIES))}.{_did_you_mean(name, MEMORIES)}")
    MEMORIES[name].check(model)
  if not model.pattern or model.layers % len(model.pattern):
    raise ValueError(
      f"model.layers={model.layers} is not a multiple of the {len(model.pattern)} entries of model.pattern; "
      f"use {largest_multiple(len(model.pattern), model.layers)} layers or change the pattern.")


def _check_cache(model: ModelConfig) -> None:
  check_cache(model.cache)
  if model.cache.policy != "full" and "attention" not in model.pattern:
    raise ValueError(
      f"model.cache.policy={model.cache.policy!r} has nothing to keep: model.pattern={','.join(model.pattern)} has no "
      "memory 'attention'; use model.cache.policy='full', or a pattern with 'attention'.")


def _check_lengths(config: Config) -> None:
  data, train, context_len = config.data, config.train, config.model.context_len
  if context_len < 0:
    raise ValueError(f"model.context_len={context_len} must be at least 0; 0 means no bound.")
  if context_len and max(data.seq_len, config.eval.seq_len) > context_len:
    field = "data" if data.seq_len > context_len else "eval"
    raise ValueError(
      f"{field}.seq_len={max(data.seq_len, config.eval.seq_len)} is more than the {context_len} tokens that the model "
      "was made for; use at most as many.")
  if data.seq_len % data.update_len:
    raise ValueError(
      f"data.update_len={data.update_len} does not divide data.seq_len={data.seq_len}; "
      f"use a divisor such as {largest_divisor(data.seq_len, at_most=data.update_len)}.")
  for name in sorted(set(config.model.pattern)):
    _check_carried(config, name)
    _check_block(config, name)
  if data.batch % train.accumulate:
    raise ValueError(
      f"train.accumulate={train.accumulate} does not divide data.batch={data.batch}; "
      f"use a divisor such as {largest_divisor(data.batch, at_most=train.accumulate)}.")


def _check_carried(config: Config, name: str) -> None:
  data = config.data
  if MEMORIES[name].needs_token_cache and (data.update_len < data.seq_len or data.rows == "documents"):
    raise ValueError(
      f"the memory {name!r} forgets between updates, so data.rows={data.rows!r} with data.update_len={data.update_len} "
      f"and data.seq_len={data.seq_len} cannot carry it; use data.rows='sequences' or 'packed' and "
      f"data.update_len={data.seq_len}, or a memory such as 'window'.")


def _check_block(config: Config, name: str) -> None:
  field = MEMORIES[name].block_field
  if field is None:
    return
  block, update_len = _get(config, field), config.data.update_len
  if update_len % block:
    raise ValueError(
      f"{field}={block}, the block of memory {name!r}, does not divide data.update_len={update_len}; use an update_len "
      f"that is a multiple of {block}, or a block such as {largest_divisor(update_len, at_most=block)}.")


def largest_divisor(number: int, *, at_most: int) -> int:
  """The largest divisor of `number` not above `at_most`."""
  return next(d for d in range(min(number, max(at_most, 1)), 0, -1) if number % d == 0)


def largest_multiple(unit: int, at_most: int) -> int:
  """The largest positive multiple of `unit` not above `at_most`, at least `unit`."""
  return max(unit, at_most // max(unit, 1) * unit)


def _as_config_dict(value: Any) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
    f.name: _as_config_dict(getattr(value, f.name)) if dataclasses.is_dataclass(getattr(value, f.name))
    else getattr(value, f.name)
    for f in dataclasses.fields(value)})


def _build(cls: type, raw: dict[str, Any], path: str) -> Any:
  hints = typing.get_type_hints(cls)
  unknown = sorted(set(raw) - set(hints))
  if unknown:
    raise ValueError(
      f"unknown config field {path}{unknown[0]}; this section has {', '.join(hints)}."
      f"{_did_you_mean(unknown[0], hints)}")
  return cls(**{name: _convert(hints[name], value, path + name) for name, value in raw.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, dict):
      raise ValueError(f"{path}={value!r} must be a section of fields.")
    return _build(hint, value, path + ".")
  if typing.get_origin(hint) is tuple:
    return _convert_list(typing.get_args(hint)[0], value, path)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ValueError(f"{path}={value!r} must be of type {hint.__name__}, not {type(value).__name__}.")
  return value


def _convert_list(item_hint: Any, value: Any, path: str) -> tuple[Any, ...]:
  """A tuple of names, or of tuples of as many names as the hint has."""
  if not isinstance(value, (tuple, list)):
    raise ValueError(f"{path}={value!r} must be a list of values.")
  if item_hint is str:
    if not all(isinstance(item, str) for item in value):
      raise ValueError(f"{path}={value!r} must be a list of names.")
    # the flag --config.model.pattern=window,vq arrives as a single item
    return tuple(name for item in value for name in item.split(","))
  length = len(typing.get_args(item_hint))
  for item in value:
    if not (isinstance(item, (tuple, list)) and len(item) == length and all(isinstance(part, str) for part in item)):
      raise ValueError(f"{path}={value!r} must be a list of groups of {length} names each.")
  return tuple(tuple(item) for item in value)


def _get(config: Config, path: str) -> Any:
  for name in path.split("."):
    config = getattr(config, name)
  return config


def _did_you_mean(given: str, allowed: Any) -> str:
  close = difflib.get_close_matches(given, list(allowed), n=1)
  return f" Did you mean {close[0]!r}?" if close else ""
