"""Accelerators: what a chip computes, holds and exchanges in a second, and in which sizes slices of them are sold.

Figures are the vendors': https://docs.cloud.google.com/tpu/docs/v5e, …/v5p, …/v6e and …/v4, and the data sheets of
NVIDIA's A100, H100 and H200 in their SXM form, read in December 2026. `usable_bytes` is what a program may take: for
TPUs the limit that libtpu names where it refuses a larger one, for GPUs what CUDA reports for the whole device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lattice_jax.domains import did_you_mean

GIB = 1 << 30
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")


@dataclass(frozen=True)
class Chip:
  """peak_flops: dense bf16 FLOP/s. memory_rate: bytes/s of its memory. usable_bytes: None where we do not know them.

  kinds: the names that JAX has for it. port_rate: bytes/s that one port receives, of `ports` to its neighbours; a ring
  of chips along one axis of a torus uses two. Of GPUs all NVLinks are one port. topologies: sizes that are sold.
  """

  name: str
  kinds: tuple[str, ...]
  peak_flops: float
  memory_rate: float
  usable_bytes: int | None
  port_rate: float
  ports: int
  topologies: tuple[str, ...]

  @property
  def is_tpu(self) -> bool:
    return self.name.startswith("v")

  @property
  def compiler(self) -> str | None:
    """The environment of scripts/aot.sh whose compiler makes whole updates for it where there is none; None without.

    None for v4, whose chips are two devices each, and for GPUs of which we have no description in XLA's format.
    """
    if self.usable_bytes is None:
      return None
    return "tpu" if self.is_tpu else self.name

  @property
  def ring_rate(self) -> float:
    """Bytes/s that a chip receives in a collective of chips along one axis."""
    return self.port_rate * min(2, self.ports)


CHIPS = {chip.name: chip for chip in (
  Chip("v4", ("TPU v4",), 275e12, 1228e9, None, 50e9, 6, _CUBES),
  Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 819e9, int(15.75 * GIB), 50e9, 4, _SQUARES),
  Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 2765e9, int(95.74 * GIB), 100e9, 6, _CUBES),
  Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1638e9, int(31.25 * GIB), 100e9, 4, _SQUARES),
  Chip("a100", ("NVIDIA A100",), 312e12, 2039e9, None, 300e9, 1, ("1", "8")),
  Chip("h100", ("NVIDIA H100",), 989e12, 3350e9, 84_978_434_048, 450e9, 1, ("1", "8")),
  Chip("h200", ("NVIDIA H200",), 989e12, 4800e9, None, 450e9, 1, ("1", "8")))}


def chip_of_kind(kind: str) -> Chip | None:
  """The chip that JAX calls `kind`, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite"; None for others, as CPUs."""
  for chip in CHIPS.values():
    if kind in chip.kinds or (not chip.is_tpu and kind.startswith(chip.kinds)):
      return chip
  return None


def num_chips(topology: str) -> int:
  """Of 16x16, or of 8."""
  return math.prod(int(side) for side in topology.split("x"))


def parse_topology(text: str) -> tuple[Chip, str]:
  """(chip, topology) of CHIP:TOPOLOGY such as v5e:16x16, v5p:4x4x4 or h100:8.

  Raises:
    ValueError: there is no such chip, or none are sold in this size.
  """
  name, _, topology = text.partition(":")
  if name not in CHIPS:
    raise ValueError(
      f"--topology={text} must be CHIP:SIZE with a chip of {', '.join(CHIPS)}, as in v5e:16x16 or h100:8."
      f"{did_you_mean(name, list(CHIPS))}")
  chip = CHIPS[name]
  if topology not in chip.topologies:
    raise ValueError(
      f"--topology={text} is no size in which {name} is sold; use one of "
      f"{', '.join(f'{name}:{size}' for size in chip.topologies)}.")
  return chip, topology
