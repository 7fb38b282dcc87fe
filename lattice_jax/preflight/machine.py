"""The machine that a config is meant for: its chips, and the mesh over them, checked before anything is compiled."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh

from lattice_jax.aot import targets
from lattice_jax.chips import CHIPS, Chip, num_chips, parse_topology
from lattice_jax.config import Config
from lattice_jax.sharding import AXES, check_rows, mesh_sizes


@dataclass(frozen=True)
class Machine:
  """name: as in v5e:16x16."""

  name: str
  chip: Chip
  topology: str

  @property
  def chips(self) -> int:
    return num_chips(self.topology)

  def check_compiles(self) -> None:
    """Raises ValueError if whole updates cannot be compiled for such chips here."""
    if not self.chip.compiler:
      able = ", ".join(name for name, chip in CHIPS.items() if chip.compiler)
      raise ValueError(
        f"whole updates are compiled here for {able}, and not for {self.name}; without --search what is known by "
        "formula is printed.")

  def devices(self) -> list[jax.Device]:
    """Its chips as the compiler knows them; of a machine of one the first of the smallest slice it can describe."""
    self.check_compiles()
    if not self.chip.is_tpu:
      return list(targets.devices("cuda", self.topology))
    topology = "2x2" if self.chips == 1 else self.topology
    return list(targets.devices("tpu", f"{self.chip.name}:{topology}"))[:self.chips]


def find_machine(text: str) -> Machine:
  """The machine of CHIP:SIZE. Raises ValueError as `parse_topology`."""
  return Machine(text, *parse_topology(text))


def abstract_mesh(config: Config, machine: Machine) -> AbstractMesh:
  """The mesh over the machine's chips, without them.

  Raises:
    ValueError: the mesh does not multiply to their number, or its `data` axis does not divide the rows.
  """
  mesh = AbstractMesh(mesh_sizes(config.mesh, machine.chips), AXES)
  check_rows(config, data=mesh.shape["data"])
  return mesh
