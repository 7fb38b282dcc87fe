"""From ConfigDict to frozen dataclasses: every check, in one style of error.

`default_config()` gives the locked ConfigDict that files under `configs/` edit; `parse_config()` turns the edited
one into `config.Config` and refuses what cannot run.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import ml_collections

from lattice_jax.anchor_rule import ANCHOR, most_protected, parse_insert, parse_rule
from lattice_jax.cache.policy import check_cache, make_policy
from lattice_jax.config import AnchorsConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from lattice_jax.config_dict import default_config
from lattice_jax.domains import checked
from lattice_jax.fields import check_fields, check_known, domain_of
from lattice_jax.memories.registry import FOLDERS, find_memory
from lattice_jax.shown import shown

__all__ = [
  "check_config", "check_protected", "default_config", "largest_divisor", "largest_multiple", "parse_config", "resolve",
  "to_dict"]


def parse_config(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
  """The frozen form of a config, checked field by field and across sections; what it names by a file is read.

  Raises:
    ValueError: a field is unknown, has the wrong type, or contradicts another; the message says what to change.
  """
  raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
  parsed = resolve(_build(Config, raw, ""))
  _check_together(parsed)
  return parsed


def resolve(config: Config) -> Config:
  """The config with what its memories name by files, once the model is known. Raises ValueError as `Memory.resolve`."""
  model = config.model
  if model.origin == "config":
    for name in dict.fromkeys(model.pattern):
      model = find_memory(name).resolve(model)
  return dataclasses.replace(config, model=model)


def to_dict(config: Config) -> dict[str, Any]:
  """A JSON-ready copy; `parse_config` takes it back."""
  return dataclasses.asdict(config)


def check_config(config: Config) -> None:
  """Every field's domain, and the rules between fields. Raises ValueError."""
  check_fields(config)
  _check_together(config)


def _check_together(config: Config) -> None:
  _check_model(config.model)
  _check_cache(config.model)
  _check_lengths(config)
  _check_decay(config.optimizer)
  _check_causal_share(config)
  _check_repeat_share(config.data)
  _check_last_layers(config)
  _check_anchors(config.data.anchors)
  _check_copies(config)


def _check_model(model: ModelConfig) -> None:
  for name in model.pattern:
    find_memory(name).check(model)
  if model.position_wavelength and model.dim % 2:
    raise ValueError(
      f"model.dim={model.dim} must be even for model.position_wavelength={model.position_wavelength}, whose sinusoids "
      f"have as many columns; use {model.dim + 1}, or model.position_wavelength=0.")
  if model.layers % len(model.pattern):
    raise ValueError(
      f"model.layers={model.layers} is not a multiple of the {len(model.pattern)} entries of model.pattern; "
      f"use {largest_multiple(len(model.pattern), model.layers)} layers or change the pattern.")


def _check_cache(model: ModelConfig) -> None:
  check_cache(model.cache)
  if make_policy(model.cache).drops and not any(find_memory(name).takes_policy for name in model.pattern):
    able = " or ".join(repr(name) for name in FOLDERS if find_memory(name).takes_policy)
    raise ValueError(
      f"model.cache.policy={model.cache.policy!r} has nothing to keep: model.pattern={','.join(model.pattern)} has no "
      f"memory {able}; use model.cache.policy='full', or a pattern with {able}.")


def _check_lengths(config: Config) -> None:
  data, train, context_len = config.data, config.train, config.model.context_len
  if context_len and max(data.seq_len, config.eval.seq_len) > context_len:
    field = "data" if data.seq_len > context_len else "eval"
    raise ValueError(
      f"{field}.seq_len={max(data.seq_len, config.eval.seq_len)} is more than the {context_len} tokens that the model "
      "was made for; use at most as many.")
  if data.seq_len % data.update_len:
    raise ValueError(
      f"data.update_len={data.update_len} does not divide data.seq_len={data.seq_len}; "
      f"use a divisor such as {largest_divisor(data.seq_len, at_most=data.update_len)}.")
  _check_shards(config)
  for name in sorted(set(config.model.pattern)):
    _check_carried(config, name)
    _check_block(config, name)
  if data.batch % train.accumulate:
    raise ValueError(
      f"train.accumulate={train.accumulate} does not divide data.batch={data.batch}; "
      f"use a divisor such as {largest_divisor(data.batch, at_most=train.accumulate)}.")


def _check_shards(config: Config) -> None:
  seq, update_len = config.mesh.seq, config.data.update_len
  if update_len % seq:
    raise ValueError(
      f"mesh.seq={seq} devices cannot share data.update_len={update_len} tokens evenly; use a divisor such as mesh.seq="
      f"{largest_divisor(update_len, at_most=seq)}, or data.update_len={-(-update_len // seq) * seq}.")
  for name in config.model.pattern:
    reach = find_memory(name).reach(config.model)
    if seq > 1 and update_len // seq < reach:
      raise ValueError(
        f"the memory {name!r} reaches back {reach} tokens, and mesh.seq={seq} gives each device {update_len // seq} of "
        f"data.update_len={update_len}; use data.update_len={reach * seq} or more, or a smaller mesh.seq.")


def _check_carried(config: Config, name: str) -> None:
  data = config.data
  if find_memory(name).needs_token_cache and (data.update_len < data.seq_len or data.rows == "documents"):
    raise ValueError(
      f"the memory {name!r} forgets between updates, so data.rows={data.rows!r} with data.update_len={data.update_len} "
      f"and data.seq_len={data.seq_len} cannot carry it; use data.rows='sequences' or 'packed' and "
      f"data.update_len={data.seq_len}, or a memory such as 'window'.")


def _check_block(config: Config, name: str) -> None:
  field = find_memory(name).block_field
  if field is None:
    return
  block, seq, update_len = operator.attrgetter(field)(config), config.mesh.seq, config.data.update_len
  if update_len % (block * seq):
    own = f" over mesh.seq={seq}" if seq > 1 else ""
    raise ValueError(
      f"{field}={block}, the block of memory {name!r}, does not divide data.update_len={update_len}{own}; use an "
      f"update_len that is a multiple of {block * seq}, or a block such as "
      f"{largest_divisor(update_len // seq, at_most=block)}.")


def _check_decay(optimizer: OptimizerConfig) -> None:
  if optimizer.decay == "independent" and optimizer.weight_decay >= 1:
    raise ValueError(
      f"optimizer.weight_decay={optimizer.weight_decay} is the part of a parameter that optimizer.decay='independent' "
      "takes off it in every update, and must be less than 1; use a smaller one, or optimizer.decay='scaled'.")


def _check_anchors(anchors: AnchorsConfig) -> None:
  rule = parse_rule(anchors.rule)
  if anchors.random_every == 1:
    raise ValueError("data.anchors.random_every=1 would make every token an anchor; use 2 or more, or 0 for none.")
  if parse_insert(anchors.insert).name == "none" and anchors.start != "mean":
    raise ValueError(
      f"data.anchors.start={anchors.start} has no effect with data.anchors.insert=none, which adds no token; use "
      "data.anchors.insert=sentence.")
  for name in ("random_every", "dropout", "causal_share", "repeat_share"):
    if getattr(anchors, name) and rule.name == "none":
      raise ValueError(
        f"data.anchors.{name}={getattr(anchors, name)} has no effect with data.anchors.rule=none, by which nothing is "
        "an anchor; use a rule such as every:16 or punctuation.")


def _check_copies(config: Config) -> None:
  anchors, insert = config.data.anchors, parse_insert(config.data.anchors.insert)
  is_marked = parse_rule(anchors.rule).token == ANCHOR
  if anchors.copies > 1 and insert.name == "none" and not is_marked:
    raise ValueError(
      f"data.anchors.copies={anchors.copies} has no effect with data.anchors.insert=none and data.anchors.rule="
      f"{anchors.rule}, which add and mark no {ANCHOR}; use data.anchors.insert=sentence, or data.anchors.copies=1.")
  if is_marked:
    longest = max(config.data.seq_len, config.eval.seq_len)
    check_protected(config.model, copies=anchors.copies, apart=insert.every or 1, length=longest)


def check_protected(model: ModelConfig, *, copies: int, apart: int, length: int) -> None:
  """Raises ValueError if a memory has no room for what `data.anchors.copies` protects in a text of `length` tokens.

  apart: as in `anchor_rule.most_protected`.
  """
  rooms = [find_memory(name).protects for name in model.pattern]
  room = min((protects(model) for protects in rooms if protects is not None), default=length)
  needed = most_protected(copies, apart, length)
  if room < needed:
    raise ValueError(
      f"model.anchor.protected={room} is too little for data.anchors.copies={copies}: all {ANCHOR} but the last of "
      f"each {copies} are protected, in a text of {length:,} tokens up to {needed:,}; set it to at least {needed}, or "
      "data.anchors.copies=1.")


def _check_causal_share(config: Config) -> None:
  share, rules = config.data.anchors.causal_share, [find_memory(name).marks_after for name in config.model.pattern]
  least = min((marks_after(config.model) for marks_after in rules if marks_after is not None), default=None)
  if share and least is not None and least < config.data.seq_len:
    raise ValueError(
      f"data.anchors.causal_share={share} leaves sequences of {config.data.seq_len} tokens without marks, in which "
      f"model.anchor.max_segment={least} forces anchors all the same; set it to at least {config.data.seq_len} for "
      "training.")


def _check_repeat_share(data: DataConfig) -> None:
  share = data.anchors.repeat_share
  if share and (data.rows != "sequences" or data.update_len != data.seq_len or data.seq_len % 2):
    raise ValueError(
      f"data.anchors.repeat_share={share} repeats halves of sequences that an update holds whole, and data.rows="
      f"{data.rows!r}, data.seq_len={data.seq_len}, data.update_len={data.update_len}; use data.rows='sequences' and "
      "an even data.seq_len that is data.update_len.")


def _check_last_layers(config: Config) -> None:
  last, layers, named = config.optimizer.last_layers, config.model.layers, len(config.model.pattern)
  if last > layers:
    raise ValueError(
      f"optimizer.last_layers={last} is more than model.layers={layers}; use at most as many, or 0 for all parameters.")
  if last and (named != layers or not config.model.scan_layers):
    raise ValueError(
      f"optimizer.last_layers={last} needs layers that are arrays of their own, and model.pattern names {named} of "
      f"{layers}; name each layer in the pattern with model.scan_layers=True, or use optimizer.last_layers=0.")


def largest_divisor(number: int, *, at_most: int) -> int:
  """The largest divisor of `number` not above `at_most`."""
  small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
  return max(d for part in small for d in (part, number // part) if d <= max(at_most, 1))


def largest_multiple(unit: int, at_most: int) -> int:
  """The largest positive multiple of `unit` not above `at_most`, at least `unit`."""
  return max(unit, at_most // max(unit, 1) * unit)


def _build(cls: type, raw: dict[str, Any], path: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(cls)}
  check_known(raw, fields, path)
  return cls(**{name: _convert(fields[name], value, path + name) for name, value in raw.items()})


def _convert(field: dataclasses.Field, value: Any, path: str) -> Any:
  domain = domain_of(field)
  if domain is not None:
    return checked(domain, path, value)
  if not isinstance(value, dict):
    raise ValueError(f"{path}={shown(value)} must be a section of fields.")
  return _build(field.default_factory, value, path + ".")
