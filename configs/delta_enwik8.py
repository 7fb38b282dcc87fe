"""DeltaNet, 12 layers (92M parameters), enwik8, and the other recurrences; all else as `lattice_enwik8`.

python scripts/prepare_data.py enwik8
python train.py --config=configs/delta_enwik8.py --workdir=runs/delta_enwik8
python train.py --config=configs/delta_enwik8.py:gated_deltanet --workdir=runs/gated_deltanet

Variants: linear, scalar_decay (Mamba-2), gla, deltanet (the default), gated_deltanet, kimi_delta (KDA), gated_slots,
ttt_linear.
Heads, size of the state and, to 0.2 %, parameters are those of `lattice_enwik8`. TTT-Linear's weights and bias hold
1.6 % more numbers, and sums of the open mini-batch as many again, so that twice the bytes live between its tokens.

Cost: not yet measured (32.8 billion tokens). Expected: not yet measured.

A size for two CPU cores on the shipped sample of Wikipedia, and one that only shows that everything runs:

python train.py --config=configs/delta_enwik8.py:sample --workdir=runs/delta_sample --cpu_devices=2
python train.py --config=configs/delta_enwik8.py:smoke --workdir=runs/delta_smoke  # a minute
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import ml_collections

from configs import common, lattice_enwik8
from lattice_jax.memories.registry import find_section

RECURRENCES = (
  "linear", "scalar_decay", "gla", "deltanet", "gated_deltanet", "kimi_delta", "gated_slots", "ttt_linear")
_KEYS = {"lattice": "slots", "ttt_linear": "value_dim"}  # the width of queries and keys where it is no field of its own


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return in_place_of_lattice(arg, lattice_enwik8.full_size, lattice_enwik8.use_sample)


def in_place_of_lattice(
  arg: str, full_size: Callable[[], ml_collections.ConfigDict], use_sample: Callable[[ml_collections.ConfigDict], None],
  *, default: str = "deltanet",
) -> ml_collections.ConfigDict:
  """Lattice's experiment with the recurrence that `arg` names, else with `default`."""
  def put(name: str, config: ml_collections.ConfigDict) -> None:
    config.name = config.name.replace("lattice", name)
    use_recurrence(config.model, name, unit=16)

  recurrences = {name: functools.partial(put, name) for name in RECURRENCES}
  arg = common.with_one_of(arg, RECURRENCES, default)
  return common.make_config(arg, full_size, {"sample": use_sample, **recurrences})


def use_recurrence(
  model: ml_collections.ConfigDict, name: str, *, unit: int = 1, sizes: Mapping[str, object] = MappingProxyType({}),
) -> None:
  """Replaces Lattice by a recurrence with its heads and size of state; the MLP gets the remaining parameters.

  ttt_linear has values as wide as keys, so its state has another size unless Lattice has as many slots as its values
  are wide.

  unit: the MLP's width changes by multiples of it, so that meshes still divide it. sizes: fields of the recurrence's
  section that are not to be Lattice's.
  """
  lattice, recurrence = model.lattice, model[find_section(name).name]
  model.pattern = tuple(name if memory == "lattice" else memory for memory in model.pattern)
  same = {
    "heads": lattice.heads, "key_dim": lattice.slots, "value_dim": lattice.value_dim, "conv_width": lattice.conv_width,
    "gated": lattice.gated,
    # A slot holds a key and a value.
    "slots": lattice.slots * lattice.value_dim // (lattice.slots + lattice.value_dim)}
  recurrence.update({field: value for field, value in same.items() if field in recurrence} | dict(sizes))
  left = _own_parameters(model, "lattice") - _own_parameters(model, name)
  model.mlp_dim += unit * round(left / (3 * model.dim * unit))


def use_published(model: ml_collections.ConfigDict, name: str, sizes: Mapping[str, object]) -> None:
  """Replaces Lattice by a recurrence in the frame it was published in, with these fields of its section.

  The MLP gets the remaining parameters.
  """
  section, lattice = find_section(name), model.lattice
  recurrence = model[section.name]
  model.pattern = tuple(name if memory == "lattice" else memory for memory in model.pattern)
  recurrence.update(sizes)
  recurrence.update(section.published(name, recurrence))
  recurrence.faithful = True
  values = lattice.heads * lattice.value_dim
  before = _own_parameters(model, "lattice") + values * (3 * model.dim + lattice.conv_width) + lattice.value_dim
  model.mlp_dim += round((before - _published_parameters(model.dim, name, recurrence)) / (3 * model.dim))


def _published_parameters(dim: int, name: str, config: ml_collections.ConfigDict) -> int:
  """The number of a faithful layer's parameters."""
  heads, width, values = config.heads, config.value_dim, config.heads * config.value_dim
  keys = values if name == "ttt_linear" else config.key_dim * (1 if name == "scalar_decay" else heads)
  # q and k of TTT-Linear are one projection, and its values are not convolved
  convolved = 2 * keys + (0 if name == "ttt_linear" else values)
  projected = (keys if name == "ttt_linear" else 2 * keys) + (2 + config.gated) * values

  def low_rank(rank: int, outputs: int) -> int:
    return rank * (dim + outputs) + outputs

  own = {
    "linear": lambda: 0,
    "scalar_decay": lambda: heads * (dim + 3) + convolved + values,
    "gla": lambda: low_rank(config.gate_rank, keys) + width,
    "deltanet": lambda: heads * dim + width,
    "gated_deltanet": lambda: heads * (2 * dim + 2) + width,
    "kimi_delta": lambda: heads * (dim + 1) + low_rank(width, keys) + low_rank(width, values) - dim * values + width,
    "gated_slots": lambda: dim * heads * config.slots + values,
    "ttt_linear": lambda: heads * (dim + 1) + values * (width + 3) + config.mini_batch + convolved + 2 * values,
  }[name]()
  return own + dim * projected + config.conv_width * convolved


def _own_parameters(model: ml_collections.ConfigDict, name: str) -> int:
  """The number of a layer's parameters other than those of values, output and a gate as Lattice's."""
  config, dim = model[find_section(name).name], model.dim
  heads, values = config.heads, config.value_dim
  keys = config[_KEYS[name] if name in _KEYS else "key_dim"]
  gate = heads * (dim + 1)

  def low_rank(width: int) -> int:
    rank = config.gate_rank or values
    return rank * (dim + heads * width) + heads * width

  own = {
    "lattice": lambda: gate + heads * keys * values,
    "linear": lambda: 0,
    "scalar_decay": lambda: gate + 2 * heads,
    "gla": lambda: config.gate_rank * (dim + heads * keys) + heads * keys,
    "deltanet": lambda: gate,
    "gated_deltanet": lambda: 2 * gate + heads,
    "kimi_delta": lambda: gate + heads + low_rank(keys) + config.gated * (low_rank(values) - dim * heads * values),
    "gated_slots": lambda: dim * heads * config.slots,
    "ttt_linear": lambda: gate + heads * values * (values + 3) + config.mini_batch,
  }[name]()
  if "learned_start" in config and config.learned_start:
    own += heads * keys * values
  return own + 2 * heads * (dim + config.conv_width) * keys
