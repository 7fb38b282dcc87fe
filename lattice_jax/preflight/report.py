"""Accounts as text: of one update, of who holds what, of a search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from jax.sharding import AbstractMesh

from lattice_jax.config import Config
from lattice_jax.markdown import markdown_table
from lattice_jax.preflight.account import SECONDS_AN_HOUR, Account, work
from lattice_jax.preflight.machine import Machine
from lattice_jax.preflight.search import Found
from lattice_jax.training.holdings import Holding, sentences

_GPU_POOL = 0.75  # of a GPU's memory, JAX's default


def figure(number: float) -> str:
  """Two places behind the point, or two digits of a number below one."""
  return f"{number:,.2f}" if number >= 1 or number == 0 else f"{number:.2g}"


def account_text(account: Account, *, utilisation: float, price: float | None) -> str:
  """What one update holds, exchanges and takes."""
  config, machine = account.config, account.machine
  mesh = " × ".join(f"{axis} {size}" for axis, size in account.mesh.items())
  title = f"{_title(config, machine)}; mesh {mesh}, compiled in {account.seconds:.0f} s"
  if not account.fits:
    return f"{title}\n\n{fit_sentence(account)}"
  return "\n".join([
    title, "", fit_sentence(account), "", *_collectives(account), "", *_roofline(account), "",
    estimate(account, utilisation=utilisation, price=price)])


def _title(config: Config, machine: Machine) -> str:
  return (
    f"{config.name} on {machine.name}, {machine.chips} chip{'s' * (machine.chips > 1)}: {config.data.batch:,} rows × "
    f"{config.data.update_len:,} tokens an update, remat {config.model.remat}")


def formula_text(config: Config, machine: Machine, held: Sequence[Holding], *, utilisation: float) -> str:
  """What is known of an update without its compiled program: the state, and the operations."""
  done, chip = work(config).done_flops / machine.chips, machine.chip
  state = sum(one.device_bytes for one in held)
  usable = f" of {figure(chip.usable_bytes / 1e9)} GB" if chip.usable_bytes else ""
  seconds = done / chip.peak_flops / utilisation
  return f"""{_title(config, machine)}

Parameters, optimizer, memory and batch take {figure(state / 1e9)} GB of a chip{usable}.
An update is {figure(done / 1e12)} TFLOP a chip by formula: {figure(seconds)} s at {utilisation:.0%} of its peak, an
assumption, if compute binds. Not known is what a program for {chip.name} needs beside the state, and what chips
exchange: whole updates are not compiled here for it, and no number is made up. On the machine itself train.py compiles
before the first update, and a program that does not fit is refused there."""


def fit_sentence(account: Account) -> str:
  """Whether it fits, in bytes."""
  usable = account.machine.chip.usable_bytes
  share = f" of the {figure(usable / 1e9)} GB that a program may take" if usable else ""
  if not account.fits:
    return (
      f"It does not fit: the compiler needs {figure(account.peak_bytes / 1e9)} GB of a chip{share}. --search finds the "
      "largest that does; fewer rows, model.remat=full or a larger mesh take less.")
  memory = account.memory
  arguments, temporary = memory["argument_bytes"] / 1e9, memory["temp_bytes"] / 1e9
  pool = "" if account.machine.chip.is_tpu or account.peak_bytes <= _GPU_POOL * usable else (
    f" JAX takes {_GPU_POOL:.0%} of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise: set it to 0.95.")
  return (
    f"It fits: {figure(account.peak_bytes / 1e9)} GB of a chip at the peak{share}; {figure(arguments)} GB are state "
    f"and batch, temporary arrays take {figure(temporary)} GB.{pool}")


def _collectives(account: Account) -> list[str]:
  """What a chip receives in an update, by kind and axis."""
  groups: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0, 0])
  for one in account.traffic.collectives:
    key = one.name, " × ".join(one.axes) or "none", one.group
    groups[key][0] += one.runs
    groups[key][1] += one.runs * one.received_bytes
  if not groups:
    return ["The chips exchange nothing."]
  rows = [["collective", "over", "chips", "runs an update", "a chip receives MB"]]
  for (name, axes, size), (runs, received) in sorted(groups.items(), key=lambda item: -item[1][1]):
    rows.append([name, axes, str(size), f"{runs:,}", figure(received / 1e6)])
  rows.append(["all", "", "", f"{sum(runs for runs, _ in groups.values()):,}",
               figure(account.traffic.received_bytes / 1e6)])
  return [markdown_table(rows, "llrrr")]


def _roofline(account: Account) -> list[str]:
  chip, work, roofline, traffic = account.machine.chip, account.work, account.roofline, account.traffic
  rows = [["resource", "an update of one chip", "peak of a chip", "ms at the peak"]]
  done = work.done_flops / account.machine.chips / 1e12
  rows += [
    ["compute", f"{figure(done)} TFLOP", f"{chip.peak_flops / 1e12:,.0f} TFLOP/s", figure(1e3 * roofline.compute)],
    ["HBM bytes", f"{figure(traffic.memory_bytes / 1e9)} GB", f"{chip.memory_rate / 1e9:,.0f} GB/s",
     figure(1e3 * roofline.memory)],
    ["interconnect", f"{figure(traffic.received_bytes / 1e9)} GB", f"{chip.ring_rate / 1e9:,.0f} GB/s",
     figure(1e3 * roofline.interconnect)]]
  lines = [markdown_table(rows, "lrrr"), f"An update is bound by {roofline.binding}."]
  if traffic.uncounted_loops > 1:  # the loop over updates is one
    lines.append(
      f"{traffic.uncounted_loops - 1} loops do not say how often they turn and count once: bytes are a lower bound.")
  return lines


def estimate(account: Account, *, utilisation: float, price: float | None) -> str:
  seconds = account.roofline.bound / utilisation
  steps, chips = account.config.train.steps, account.machine.chips
  hours = seconds * steps / SECONDS_AN_HOUR
  share = account.work.flops / (seconds * chips * account.machine.chip.peak_flops)
  cost = f", {hours * chips * price:,.0f} at {price:g} for a chip-hour" if price else ""
  return (
    f"At {utilisation:.0%} of that bound, an assumption, an update takes {figure(seconds)} s ({share:.0%} mfu), and "
    f"{steps:,} updates {hours:,.1f} hours: {hours * chips:,.0f} chip-hours{cost}.")


def holdings_text(config: Config, held: Sequence[Holding], mesh: AbstractMesh) -> str:
  """A table of all arrays, their sum by field, and what is not split evenly."""
  rows = [["array", "shape", "dtype", "split over", "bytes a chip", "copies"]]
  sums: dict[str, int] = defaultdict(int)
  for one in held:
    spec = ", ".join(axis or "–" for axis in one.spec) or "–"
    copies = "whole on each" if one.copies == mesh.size > 1 else str(one.copies)
    rows.append([one.path, "×".join(map(str, one.shape)) or "scalar", one.dtype, spec, f"{one.device_bytes:,}", copies])
    sums[one.path.partition("/")[0]] += one.device_bytes
  shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  total = ", ".join(f"{name} {size:,}" for name, size in sums.items())
  whole = sentences(held, mesh) or ["Every axis that the rules split is split evenly."]
  return "\n".join([
    f"{config.name}, mesh {shape}", "", markdown_table(rows, "lllrrr"),
    f"Bytes of a chip: {sum(sums.values()):,}; {total}.", "", *whole])


def search_text(found: Sequence[Found]) -> str:
  """The largest updates, and the flags that make each.

  Without times: a program compiled with the least effort moves more bytes to and from memory than that of a run.
  """
  rows = [["", "rows", "tokens of a row", "peak GB"]]
  lines = []
  for one in found:
    if one.account is None:
      tokens, peak = one.smallest.config.data.update_len, one.smallest.peak_bytes
      rows.append([one.what, "0", f"{tokens:,}", figure(peak / 1e9)])
      lines.append(f"{one.what}: not even one row a slice of the data axis fits.")
      continue
    account = one.account
    rows.append([
      one.what, f"{account.config.data.batch:,}", f"{account.config.data.update_len:,}",
      figure(account.peak_bytes / 1e9)])
    lines.append(f"{one.what}: {one.line()}")
  lines.append("What an update with one of these lines takes: the same command with it, and without --search.")
  return "\n".join([markdown_table(rows, "lrrr"), *lines])
