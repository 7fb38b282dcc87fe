"""Changes to a stored run's config from the command line: `model.vq.cache=False`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import jax

from lattice_jax.config import Config, ModelConfig
from lattice_jax.config_checks import parse_config, to_dict
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import unbox

_WORDS = {"true": True, "false": False}


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
  """The config with every "section.field=value" applied and all checks made again.

  Raises:
    ValueError: an override is not of that form, names no field, or makes a config that cannot run.
  """
  raw = to_dict(config)
  for override in overrides:
    path, equals, text = override.partition("=")
    if not (path and equals):
      raise ValueError(f"the override {override!r} must have the form section.field=value, as in model.vq.cache=False.")
    *sections, name = path.split(".")
    section = raw
    for part in sections:
      # a section that does not exist is left for parse_config, which knows what to suggest
      section = section.setdefault(part, {})
      if not isinstance(section, dict):
        raise ValueError(f"the override {override!r} goes below {part!r}, which is a field and not a section.")
    section[name] = _parse_value(text, like=section[name] if name in section else None)
  return parse_config(raw)


def check_variables_fit(model: ModelConfig, variables: Any) -> None:
  """Raises ValueError when overrides describe a model whose parameters and buffers are not the stored ones."""
  wanted = _shapes(jax.eval_shape(lambda: init_variables(model, jax.random.key(0))))
  stored = _shapes(variables)
  changed = sorted(dict(wanted.items() ^ stored.items()))
  if changed:
    raise ValueError(
      f"with these overrides the model's {changed[0]} would not be what the checkpoint holds; override only fields "
      "that leave parameters and codebooks as they are, such as model.vq.cache.")


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(unbox(variables))}


def _parse_value(text: str, *, like: Any) -> Any:
  if isinstance(like, str):
    return text
  if isinstance(like, tuple) and text[:1] not in "([":
    return tuple(text.split(","))
  if text.lower() in _WORDS:
    return _WORDS[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
