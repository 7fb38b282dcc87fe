"""An account as a JSON file: all that tables of several need, and what it was made from, so that none is made twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattice_jax.config import Config, used_leaves
from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.inspect.traffic import Collective, Traffic
from lattice_jax.memories.registry import FOLDERS
from lattice_jax.preflight.account import Account, Roofline, Work, roofline
from lattice_jax.preflight.machine import Machine, abstract_mesh, find_machine
from lattice_jax.source_code import STORES, code_digest, tree_sources
from lattice_jax.training.holdings import holdings

# Roots of the code that decides what a program is and how it is read; memories add their folders.
_ROOTS = ("lattice_jax.aot.train_step", "lattice_jax.inspect.traffic")
# Of a run, and not of an update.
_NOT_COMPILED = ("eval.", "train.save_every", "train.log_every", "train.eval_every", "name")


@dataclass(frozen=True)
class Row:
  """An account without its config. name: of the config, with its variants. key: of config, topology and compiler, which
  decide together with `code` what was compiled. memories: of the layers. traffic: collectives of one name, axes and
  group are one, whose bytes are the mean of a run; None if the program does not fit. seconds: that the compiler took.
  parameters, whole_bytes: numbers that a chip would have of the parameters, and bytes of the training state, without
  `mesh.fsdp`.
  """

  name: str
  topology: str
  key: str
  code: str
  memories: tuple[str, ...]
  compiler: str
  mesh: dict[str, int]
  batch: int
  update_len: int
  remat: str
  fsdp: bool
  steps: int
  work: Work
  fits: bool
  peak_bytes: int
  memory: dict[str, int]
  traffic: Traffic | None
  seconds: float
  parameters: int
  whole_bytes: int

  @property
  def machine(self) -> Machine:
    return find_machine(self.topology)

  @property
  def roofline(self) -> Roofline | None:
    """None if the program does not fit."""
    return roofline(self.work, self.traffic, self.machine) if self.traffic else None

  @property
  def is_current(self) -> bool:
    """Whether the code that decides what is compiled is still that of the row."""
    return self.code == code_of_programs(self.memories, self.machine.chip.is_tpu)


def stored_row(
  folder: Path, name: str, config: Config, machine: Machine, take: Callable[[Config, Machine], Account]
) -> Row:
  """The row of `folder`, or a new one where it has none of this config, topology, compiler and code."""
  path = row_path(folder, name, machine)
  if path.is_file():
    row = read_row(path)
    if row.key == key_of(config, machine) and row.is_current:
      return row
  row = make_row(name, take(config, machine))
  write_row(path, row)
  return row


def row_path(folder: Path, name: str, machine: Machine) -> Path:
  """The file of a row."""
  return folder / f"{re.sub(r'[:,=]', '_', f'{name}_{machine.name}')}.json"


def make_row(name: str, account: Account) -> Row:
  config, machine, sizes = account.config, account.machine, whole_sizes(account.config, account.machine)
  memories = tuple(sorted(set(config.model.pattern)))
  return Row(
    name, machine.name, key_of(config, machine), code_of_programs(memories, machine.chip.is_tpu), memories, compiler(),
    account.mesh,
    config.data.batch, config.data.update_len, config.model.remat, config.mesh.fsdp, config.train.steps, account.work,
    account.fits, account.peak_bytes, account.memory, account.traffic and summed(account.traffic), account.seconds,
    *sizes)


def whole_sizes(config: Config, machine: Machine) -> tuple[int, int]:
  """(parameters of a chip, bytes of its training state) if `mesh.fsdp` split none over `data`."""
  whole = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=False))
  held = holdings(whole, abstract_mesh(whole, machine))
  return (sum(one.device_bytes // 4 for one in held if one.path.startswith("params/")),
          sum(one.device_bytes for one in held))


def summed(traffic: Traffic) -> Traffic:
  """The same with one collective for all of a name, axes and group, the largest first."""
  groups: dict[tuple[str, tuple[str, ...], int], list[Collective]] = defaultdict(list)
  for one in traffic.collectives:
    groups[one.name, one.axes, one.group].append(one)
  together = []
  for kind, ones in groups.items():
    runs = sum(one.runs for one in ones)
    together.append(Collective(*kind, sum(one.runs * one.received_bytes for one in ones) / max(1, runs), runs))
  together.sort(key=lambda one: -one.runs * one.received_bytes)
  return Traffic(tuple(together), traffic.memory_bytes, traffic.uncounted_loops)


def key_of(config: Config, machine: Machine) -> str:
  """16 hex digits of what else than the code decides which program is compiled."""
  fields = {path: repr(value) for path, _, value in used_leaves(config) if not path.startswith(_NOT_COMPILED)}
  return _digest(json.dumps([machine.name, compiler(), fields], sort_keys=True).encode())


@functools.cache
def code_of_programs(memories: tuple[str, ...], is_tpu: bool) -> str:
  """16 hex digits of the code that decides what is compiled; for TPUs without the kernels of Hopper GPUs."""
  roots = *_ROOTS, *sorted({f"lattice_jax.memories.{FOLDERS[name]}" for name in memories})
  sources = tree_sources()
  hopper = [path.removesuffix(".py").replace("/", ".") for path in sources if "hopper" in path]
  return code_digest(roots, sources, (*STORES, *hopper) if is_tpu else STORES)[:16]


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:16]


def compiler() -> str:
  """JAX and the compiler of TPUs or GPUs, as far as one is installed, with their versions."""
  known = {"jax", "libtpu", "jax-cuda13-plugin"}
  names = {distribution.name for distribution in importlib.metadata.distributions()} & known
  return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names))


def compilers(rows: Iterable[Row]) -> str:
  """Those by which rows were compiled, which need not be installed where a page is written."""
  return " and ".join(dict.fromkeys(row.compiler for row in rows)) or compiler()


def write_row(path: Path, row: Row) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  record = dict(vars(row)) | {"work": vars(row.work)}
  if row.traffic:
    record["traffic"] = vars(row.traffic) | {"collectives": [vars(one) for one in row.traffic.collectives]}
  write_text(path, json.dumps(record, indent=1) + "\n")


def read_row(path: Path) -> Row:
  """Raises ValueError for a file that is no row."""
  try:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    moved = record["traffic"]
    if moved:
      ones = tuple(Collective(**one | {"axes": tuple(one["axes"])}) for one in moved["collectives"])
      moved = Traffic(**moved | {"collectives": ones})
    return Row(**record | {
      "memories": tuple(record["memories"]), "work": Work(**record["work"]), "traffic": moved})
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is not a row that this version wrote ({error}); delete it, and it is made anew.") from error
