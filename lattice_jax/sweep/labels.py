"""Short names of parameters for columns, of their values, and of trials for folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lattice_jax.sweep.parameters import Parameter, Value

_LONGEST_ID = 100  # characters; W&B takes 128


def is_seed(name: str) -> bool:
  """Whether results are averaged over this parameter."""
  return name.endswith("seed")


def short_names(names: Sequence[str]) -> dict[str, str]:
  """The last part of each dotted name, or the whole name if several have this part."""
  short = {name: name.rpartition(".")[2] for name in names}
  return {name: label if list(short.values()).count(label) == 1 else name for name, label in short.items()}


def short_values(values: Sequence[Value]) -> dict[Value, str]:
  """The values as text, without the path or config file with which all of them begin."""
  heads = {_head(value) if isinstance(value, str) else "" for value in values}
  start = len(heads.pop()) if len(heads) == 1 and len(values) > 1 else 0
  return {value: str(value)[start:] for value in values}


def metric_label(metric: str) -> str:
  """The label of an axis: "bits per byte on validation (cold)" for eval_validation_cold/bits_per_byte."""
  found = re.fullmatch(r"eval_([a-z]+)_([a-z]+)/(\w+)", metric)
  return f"{found[3].replace('_', ' ')} on {found[1]} ({found[2]})" if found else metric


def grid_ids(parameters: Sequence[Parameter], settings: Sequence[dict[str, Value]]) -> list[str]:
  """The ids of trials, as in codes=256_seed=1, or numbers if these are too long or not unique."""
  varying = [parameter for parameter in parameters if len(parameter.choices()) > 1]
  names = short_names([parameter.name for parameter in varying])
  texts = {parameter.name: short_values(parameter.choices()) for parameter in varying}
  ids = [
    "_".join(f"{names[name]}={_clean(texts[name][setting[name]])}" for name in names) for setting in settings]
  if len(set(ids)) < len(ids) or max(map(len, ids)) > _LONGEST_ID:
    return [numbered_id(index) for index in range(len(settings))]
  return ids


def numbered_id(index: int) -> str:
  return f"trial_{index:03d}"


def _clean(text: str) -> str:
  """Replaces what the name of a folder or a W&B run cannot contain, such as commas."""
  return re.sub(r"[^A-Za-z0-9._+-]+", "-", text.replace(",", "+"))


def _head(text: str) -> str:
  """The text up to its last slash or colon."""
  return text[:max(text.rfind("/"), text.rfind(":")) + 1]
