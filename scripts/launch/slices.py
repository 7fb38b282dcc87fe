"""Slices of TPUs and nodes of GPUs, as clouds sell and Kubernetes names them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lattice_jax.domains import did_you_mean

_CUBES = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
  1024: "8x8x16", 2048: "8x16x16"}
_SQUARES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# generation: (prefix of types, what a type counts by chip, Kubernetes' name, topologies by chips, name of the peak)
_TPUS = (
  ("v4", 2, "tpu-v4-podslice", _CUBES, "TPU v4"), ("v5litepod", 1, "tpu-v5-lite-podslice", _SQUARES, "TPU v5e"),
  ("v5p", 2, "tpu-v5p-slice", _CUBES, "TPU v5p"), ("v6e", 1, "tpu-v6e-slice", _SQUARES, "TPU v6"))
_TPUS_A_HOST = 4
_GPUS = {"a100": "nvidia-tesla-a100", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}


@dataclass(frozen=True)
class Slice:
  """chips: of all hosts. resource: Kubernetes' name for one. selector: labels of its nodes. peak: key of PEAK_FLOPS."""

  name: str
  chips: int
  hosts: int
  resource: str
  selector: dict[str, str]
  peak: str

  @property
  def is_tpu(self) -> bool:
    return self.resource == "google.com/tpu"


def slices() -> dict[str, Slice]:
  """Every slice by its name, such as v5litepod-64 or h100-16."""
  found = []
  for prefix, unit, label, topologies, peak in _TPUS:
    for chips, topology in topologies.items():
      selector = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": topology}
      hosts = math.ceil(chips / _TPUS_A_HOST)
      found.append(Slice(f"{prefix}-{chips * unit}", chips, hosts, "google.com/tpu", selector, peak))
  for name, label in _GPUS.items():
    for hosts in (1, 2, 4, 8, 16, 32, 64):
      found.append(Slice(
        f"{name}-{8 * hosts}", 8 * hosts, hosts, "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": label},
        name.upper()))
  return {slice.name: slice for slice in found}


def find_slice(name: str) -> Slice:
  """Raises ValueError for a name that is not one."""
  known = slices()
  if name not in known:
    raise ValueError(
      f"--type={name} is not one of v4-CORES, v5litepod-CHIPS, v5p-CORES, v6e-CHIPS, a100-GPUS, h100-GPUS, h200-GPUS "
      f"in a size that is sold.{did_you_mean(name, list(known))}")
  return known[name]
