"""Lattice and the other recurrences at equal bytes: of what lives between two tokens, and of parameters.

python train.py --config=configs/recurrences.py --workdir=runs/recurrences
python train.py --config=configs/recurrences.py:gated_deltanet --workdir=runs/gated_deltanet
python scripts/sweep.py configs/sweeps/recurrences_rates.yaml
python scripts/sweep.py configs/sweeps/recurrences.yaml --against=config=lattice

Two layers of two heads on the shipped sample of Wikipedia, 512 bytes a sequence, each one update with full
backpropagation: the model of configs/ablation_lattice.py with 66 slots in place of 64. A layer then keeps 16,896 bytes
of every row from one token to the next: 66 × 32 numbers a head, of TTT-Linear 33 × 32 weights and as many sums of the
open mini-batch's gradients. What the convolutions keep is not among them. Parameters are as many to 0.3 %.

lattice                     the default
returning                   Lattice whose slots go back to where a document began
linear, scalar_decay, gla, deltanet, gated_deltanet, kimi_delta, gated_slots, ttt_linear
                            another recurrence
long                        ten million bytes, twice the sample, in place of half a million
start, unit_values          what Lattice has, of memories of one matrix a head: documents begin with a learned one;
                            values of length one

Cost: 45 s on a core of an AMD EPYC, `long` 15 minutes. Expected: 2.912 bits per byte on validation, with `returning`
2.854 (three seeds); the others are in docs/results/recurrences.
"""

from __future__ import annotations

import functools

import ml_collections

from configs import ablation_lattice, common, delta_enwik8
from lattice_jax.memories.registry import find_section

_SIZES = {"gated_slots": {"key_dim": 64, "slots": 22}}  # 22 × (64 + 32) = 66 × 32
# The best of 0.004, 0.008 and 0.016 (configs/sweeps/recurrences_rates.yaml, docs/results/recurrences).
_RATES = {
  "lattice": 8e-3, "returning": 8e-3, "linear": 8e-3, "scalar_decay": 8e-3, "gla": 8e-3, "deltanet": 8e-3,
  "gated_deltanet": 8e-3, "kimi_delta": 8e-3, "gated_slots": 8e-3, "ttt_linear": 8e-3}
_MATRICES = ("gated_linear", "delta")  # sections of memories that are one matrix a head
_ABLATIONS = {"start": "learned_start", "unit_values": "unit_values"}
MEMORIES = ("lattice", "returning", *delta_enwik8.RECURRENCES)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  changes = {name: functools.partial(use_memory, name=name) for name in MEMORIES}
  ablations = {name: functools.partial(use_ablation, name=name) for name in _ABLATIONS}
  arg = common.with_one_of(arg, MEMORIES, "lattice")
  # ablations first: the MLP gets what parameters they leave
  config = common.make_config(arg, base, {**ablations, **changes, "long": use_long, "sample": common.is_sample_size})
  asked = [name for name in _ABLATIONS if name in arg.split(",")]
  memories = [name for name in delta_enwik8.RECURRENCES if find_section(name).name in _MATRICES]
  if asked and config.model.pattern[0] not in memories:
    raise ValueError(
      f"this config's {' and '.join(asked)} would change nothing of {config.model.pattern[0]!r}; name one of "
      f"{', '.join(memories)} beside it, or leave it out.")
  return config


def base() -> ml_collections.ConfigDict:
  """Lattice with as many numbers as TTT-Linear's weights and sums."""
  config = ablation_lattice.base()
  config.name = "recurrences"
  ablation_lattice.use_slots(config.model, 66)
  return config


def use_ablation(config: ml_collections.ConfigDict, name: str) -> None:
  """Gives every memory of one matrix a head what Lattice has."""
  config.name += f"_{name}"
  for section in _MATRICES:
    config.model[section][_ABLATIONS[name]] = True


def use_memory(config: ml_collections.ConfigDict, name: str) -> None:
  """One memory in both layers, at its learning rate."""
  config.name += f"_{name}"
  config.optimizer.learning_rate = _RATES[name]
  if name == "returning":
    config.model.lattice.update({"forget": True, "state": "returning"})
  elif name != "lattice":
    delta_enwik8.use_recurrence(config.model, name, sizes=_SIZES[name] if name in _SIZES else {})


def use_long(config: ml_collections.ConfigDict) -> None:
  """4,880 updates of 2,048 bytes."""
  config.name += "_long"
  config.train.update({"steps": 4880, "log_every": 160, "save_every": 480})
