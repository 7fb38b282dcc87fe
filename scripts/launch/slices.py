"""Slices of TPUs and nodes of GPUs, as clouds sell and Kubernetes names them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lattice_jax.chips import CHIPS, Chip, num_chips
from lattice_jax.domains import did_you_mean

# (chip, prefix of types, what a type counts by chip, Kubernetes' name)
_TPUS = (
  ("v4", "v4", 2, "tpu-v4-podslice"), ("v5e", "v5litepod", 1, "tpu-v5-lite-podslice"),
  ("v5p", "v5p", 2, "tpu-v5p-slice"), ("v6e", "v6e", 1, "tpu-v6e-slice"))
_TPUS_A_HOST = 4
_GPUS = {"a100": "nvidia-tesla-a100", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}


@dataclass(frozen=True)
class Slice:
  """chips: of all hosts, each a `chip`. resource: Kubernetes' name for one. selector: labels of its nodes."""

  name: str
  chips: int
  hosts: int
  resource: str
  selector: dict[str, str]
  chip: Chip

  @property
  def is_tpu(self) -> bool:
    return self.resource == "google.com/tpu"


def slices() -> dict[str, Slice]:
  """Every slice by its name, such as v5litepod-64 or h100-16."""
  found = []
  for chip, prefix, unit, label in _TPUS:
    for topology in CHIPS[chip].topologies:
      chips = num_chips(topology)
      if chips < _TPUS_A_HOST:
        continue
      selector = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": topology}
      hosts = math.ceil(chips / _TPUS_A_HOST)
      found.append(Slice(f"{prefix}-{chips * unit}", chips, hosts, "google.com/tpu", selector, CHIPS[chip]))
  for name, label in _GPUS.items():
    for hosts in (1, 2, 4, 8, 16, 32, 64):
      found.append(Slice(
        f"{name}-{8 * hosts}", 8 * hosts, hosts, "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": label},
        CHIPS[name]))
  return {slice.name: slice for slice in found}


def find_slice(name: str) -> Slice:
  """Raises ValueError for a name that is not one."""
  known = slices()
  if name not in known:
    raise ValueError(
      f"--type={name} is not one of v4-CORES, v5litepod-CHIPS, v5p-CORES, v6e-CHIPS, a100-GPUS, h100-GPUS, h200-GPUS "
      f"in a size that is sold.{did_you_mean(name, list(known))}")
  return known[name]
