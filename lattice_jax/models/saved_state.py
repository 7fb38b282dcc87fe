"""A decoder's memory as a file: what was read once, compressed or not, answers many questions later."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from lattice_jax.config import ModelConfig
from lattice_jax.domains import LARGEST_WHOLE
from lattice_jax.models.content import content_digest
from lattice_jax.models.decoder import init_state
from lattice_jax.models.parameters import named_leaves
from lattice_jax.shown import reason_of, shown, shown_name
from lattice_jax.stored_config import upgrade

_FORMAT = "lattice_jax state 2"  # 1 did not say whose weights had read the text


def save_state(path: Path, model: ModelConfig, variables: Any, state: Any, max_len: int) -> None:
  """Writes a state of the shapes of `init_state(model, batch, max_len)` as safetensors; no code, no pickle.

  variables: by which the text was read; the file keeps their digest.
  """
  arrays = named_leaves(state, ".")
  batch = min(leaf.shape[1] for leaf in arrays.values())
  about = {
    "format": _FORMAT, "batch": batch, "max_len": max_len, "model": dataclasses.asdict(model),
    "weights": content_digest(variables)}
  save_file(arrays, path, metadata={"about": json.dumps(about)})


def load_state(path: Path, model: ModelConfig, variables: Any) -> Any:
  """The state that `save_state` wrote for the same model, weights and cache policy.

  Raises:
    ValueError: the file is damaged, or is the state of another model or policy.
  """
  try:
    with safe_open(path, framework="flax") as file:
      metadata = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (SafetensorError, OSError) as error:
    raise ValueError(f"{path} cannot be read as a saved state ({reason_of(error)}); save it again.") from error
  about = _about(metadata)
  if about is None:
    raise ValueError(
      f"{path} is no saved state of a decoder, or does not say which weights read the text; save it again with "
      "models.saved_state.save_state.")
  ours = _fields(dataclasses.asdict(model))
  # what an older file does not say was not there to be changed
  theirs = upgrade({"model": about["model"]})["model"]
  for name, value in (_fields(dataclasses.asdict(ModelConfig())) | _fields(theirs)).items():
    if name not in ours:
      raise ValueError(
        f"{path} was saved with {shown_name(name)}={shown(value)}, which this version does not know; load it with the "
        "version that wrote it, or save it again.")
    if ours[name] != value:
      raise ValueError(f"{path} was saved with {name}={value}, and the model has {ours[name]}; set it to {value}.")
  template = jax.eval_shape(lambda: init_state(model, about["batch"], about["max_len"]))
  wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in named_leaves(template, ".").items()}
  # empty arrays: of what the policy does not record, which an older file may not know of
  arrays |= {name: jnp.zeros(*wanted[name]) for name in wanted.keys() - arrays.keys() if 0 in wanted[name][0]}
  given = {name: (leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
  if wanted != given:
    name = sorted(dict(wanted.items() ^ given.items()))[0]
    raise ValueError(f"{path} is the state of another model: its {name} differs from this model's; load the model that "
                     "read the text.")
  if about["weights"] != content_digest(variables):
    raise ValueError(f"{path} is what other weights made of the text; load the model that read it.")
  return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted])


def _about(metadata: dict[str, str]) -> dict[str, Any] | None:
  """What `save_state` said of the state; None of any other file."""
  try:
    about = json.loads(metadata["about"])
    is_right = about["format"] == _FORMAT and all(is_kind(about[name]) for name, is_kind in _KINDS.items())
  except (KeyError, TypeError, ValueError, RecursionError):
    return None
  return about if is_right else None


def _is_count(value: Any) -> bool:
  return type(value) is int and 1 <= value <= LARGEST_WHOLE


_KINDS = {
  "batch": _is_count, "max_len": _is_count, "model": lambda value: isinstance(value, dict),
  "weights": lambda value: isinstance(value, str)}


def _fields(section: dict[str, Any], name: str = "model") -> dict[str, str]:
  """The fields of a config by their whole names, as JSON."""
  found = {}
  for key, value in section.items():
    found |= _fields(value, f"{name}.{key}") if isinstance(value, dict) else {f"{name}.{key}": json.dumps(value)}
  return found
