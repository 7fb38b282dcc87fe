"""The account of an update: compiled for a machine, what it holds, moves and computes, and how long that takes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import jax

from lattice_jax.aot.train_step import compile_update, memory_facts
from lattice_jax.config import Config
from lattice_jax.inspect.traffic import Traffic, read_traffic
from lattice_jax.models.parameters import flops_per_token
from lattice_jax.preflight.machine import Machine, abstract_mesh
from lattice_jax.sharding import make_mesh

SECONDS_AN_HOUR = 3600
_RESOURCES = (  # libtpu's two ways to say it, of which the second is about temporary arrays alone
  r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm",
  r"memory required for HLO temporaries \(([\d.]+)([KMG])\) exceeds available HBM")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Work:
  """What an update computes, by formula. flops: the model's, of all chips, forward and backward. done_flops: with the
  forward pass that `model.remat` repeats.
  """

  tokens: int
  flops: float
  done_flops: float


@dataclass(frozen=True)
class Roofline:
  """Seconds that an update takes at the chip's peak for each of three resources; the longest is the bound."""

  compute: float
  memory: float
  interconnect: float

  @property
  def bound(self) -> float:
    return max(self.compute, self.memory, self.interconnect)

  @property
  def binding(self) -> str:
    """The resource that takes longest."""
    names = {"compute": self.compute, "HBM bytes": self.memory, "interconnect": self.interconnect}
    return max(names, key=names.__getitem__)


@dataclass(frozen=True)
class Account:
  """An update on a machine. peak_bytes and the others are of one chip.

  fits: whether the compiler found room; without, `peak_bytes` is what it says the program needs, and there is no
  traffic to read.
  """

  config: Config
  machine: Machine
  mesh: dict[str, int]
  work: Work
  fits: bool
  peak_bytes: int
  memory: dict[str, int]
  traffic: Traffic | None
  seconds: float

  @property
  def roofline(self) -> Roofline | None:
    """None if the program does not fit."""
    return roofline(self.work, self.traffic, self.machine) if self.traffic else None


def work(config: Config) -> Work:
  """By the formula of `mfu`, of all tokens of an update."""
  tokens = config.data.batch * config.data.update_len
  flops = tokens * flops_per_token(config.model, config.data.seq_len)
  # A backward pass is two forward passes, of which `remat` repeats one.
  return Work(tokens, flops, flops * (1 if config.model.remat == "none" else 4 / 3))


def roofline(work: Work, traffic: Traffic, machine: Machine) -> Roofline:
  """Collectives one after another, each along one axis of the torus."""
  chip = machine.chip
  return Roofline(
    work.done_flops / machine.chips / chip.peak_flops, traffic.memory_bytes / chip.memory_rate,
    traffic.received_bytes / chip.ring_rate)


def take_account(config: Config, machine: Machine) -> Account:
  """Compiles the program of `train.steps_per_dispatch` updates, as a run would, and reads it.

  Raises:
    ValueError: the mesh or the batch does not fit the machine, or the compiler refuses the program for another reason
      than the bytes of a chip, such as a kernel's.
  """
  shape = dict(abstract_mesh(config, machine).shape)
  begin = time.perf_counter()
  try:
    compiled = compile_update(config, make_mesh(config.mesh, machine.devices()))
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    needed = _needed_bytes(str(error))
    if needed is None:
      if isinstance(error, ValueError):
        raise
      raise ValueError(_refusal(str(error), config, machine)) from error
    return Account(config, machine, shape, work(config), False, needed, {}, None, time.perf_counter() - begin)
  memory = memory_facts(compiled)
  if memory["peak_bytes"] > machine.chip.usable_bytes:  # libtpu would have refused it, CUDA's compiler does not
    return Account(
      config, machine, shape, work(config), False, memory["peak_bytes"], {}, None, time.perf_counter() - begin)
  traffic = read_traffic(compiled.as_text(), shape)
  return Account(
    config, machine, shape, work(config), True, memory["peak_bytes"], memory, traffic, time.perf_counter() - begin)


def _refusal(message: str, config: Config, machine: Machine) -> str:
  """A sentence in the place of the compiler's pages."""
  said = next(line.strip() for line in message.splitlines() if line.strip()).rstrip(".")
  return (
    f"the compiler for {machine.name} refuses the update of {config.name} with {config.data.batch} rows of "
    f"{config.data.update_len:,} tokens ({said[:300]}); change data.batch, data.update_len or the mesh, or do without "
    "kernels by model.impl='xla'.")


def _needed_bytes(message: str) -> int | None:
  """Of a program that libtpu refuses because it does not fit; None for another error."""
  found = next(filter(None, (re.search(pattern, message) for pattern in _RESOURCES)), None)
  return int(float(found[1]) * _UNITS[found[2]]) if found else None
