"""Weak scaling without the chips: a config compiled for more and more of them, each with as many rows as before."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

from lattice_jax.chips import CHIPS, num_chips
from lattice_jax.config import Config
from lattice_jax.markdown import markdown_table
from lattice_jax.preflight.machine import Machine, abstract_mesh, find_machine
from lattice_jax.preflight.report import figure
from lattice_jax.preflight.stored import Row
from lattice_jax.sharding import check_rows, mesh_sizes

MOST_SHARE = 0.2  # of an update's time that the exchange may take before something should be changed


def machines_of(chip: str, chips: Sequence[int]) -> list[Machine]:
  """A machine of each number of these chips, the most cubic where several are sold.

  Raises:
    ValueError: there is no such chip, or none are sold in one of these numbers.
  """
  if chip not in CHIPS:
    find_machine(chip)  # says which there are
  sold: dict[int, str] = {}
  for size in CHIPS[chip].topologies:
    sold[num_chips(size)] = size
  wrong = [number for number in chips if number not in sold]
  if wrong:
    raise ValueError(
      f"--weak={','.join(map(str, chips))}: {chip} is not sold as {wrong[0]} chips; choose from "
      f"{', '.join(map(str, sold))}.")
  return [find_machine(f"{chip}:{sold[number]}") for number in sorted(set(chips))]


def with_rows_of(config: Config, largest: Machine, machine: Machine) -> Config:
  """The config with as many rows a slice of the `data` axis on `machine` as it has on the largest.

  Raises:
    ValueError: its mesh or its rows do not fit one of the machines.
  """
  slices = mesh_sizes(dataclasses.replace(config.mesh, data=-1), largest.chips)[0]
  check_rows(config, data=slices)
  here = mesh_sizes(dataclasses.replace(config.mesh, data=-1), machine.chips)[0]
  changed = dataclasses.replace(
    config, mesh=dataclasses.replace(config.mesh, data=-1),
    data=dataclasses.replace(config.data, batch=config.data.batch // slices * here))
  abstract_mesh(changed, machine)
  return changed


def exchange_share(row: Row) -> float:
  """Of the time of an update at the chip's peaks in which a chip waits for others, if it computes nothing meanwhile."""
  times = row.roofline
  return times.interconnect / (times.interconnect + max(times.compute, times.memory))


def received_by(row: Row) -> dict[tuple[str, str], float]:
  """Bytes that a chip receives in an update, by (collective, axes), the most first."""
  found: dict[tuple[str, str], float] = defaultdict(float)
  for one in row.traffic.collectives:
    found[one.name, " × ".join(one.axes)] += one.runs * one.received_bytes
  return dict(sorted(found.items(), key=lambda item: -item[1]))


def scaling_table(rows: Sequence[Row]) -> str:
  """A Markdown table, a row for each number of chips."""
  cells = [["chips", "mesh", "rows", "peak GB", "collectives an update", "a chip receives MB", "most of it",
            "compute ms", "HBM ms", "interconnect ms", "share of the exchange"]]
  for row in rows:
    mesh = " × ".join(f"{axis} {size}" for axis, size in row.mesh.items() if size > 1) or "1"
    start = [f"{row.machine.chips}", mesh, f"{row.batch:,}", figure(row.peak_bytes / 1e9)]
    if not row.fits:
      cells.append([*start, "", "does not fit", *[""] * 5])
      continue
    times, received = row.roofline, received_by(row)
    most = next((f"{name} over {axes} {moved / row.traffic.received_bytes:.0%}"
                 for (name, axes), moved in received.items() if moved), "nothing")
    cells.append([
      *start, f"{sum(one.runs for one in row.traffic.collectives):,}", figure(row.traffic.received_bytes / 1e6), most,
      figure(1e3 * times.compute), figure(1e3 * times.memory), figure(1e3 * times.interconnect),
      f"{exchange_share(row):.0%}"])
  return markdown_table(cells, "llrrrrlrrrr")


def advice(row: Row) -> str:
  """Which change would bring the exchange below `MOST_SHARE` of an update, from what moves most; "" if it is below.

  What goes over `data` are parameters and their gradients, as many however many rows a chip has; what goes over `model`
  and `seq` are activations and states, which grow with the rows as the work does.
  """
  if not row.fits or exchange_share(row) <= MOST_SHARE:
    return ""
  by_axes: dict[str, float] = defaultdict(float)
  for (_, axes), moved in received_by(row).items():
    by_axes[axes] += moved
  axes = max(by_axes, key=by_axes.__getitem__)
  start = (
    f"On {row.machine.chips} chips the exchange is {exchange_share(row):.0%} of an update, and "
    f"{by_axes[axes] / row.traffic.received_bytes:.0%} of its bytes go over {axes}: ")
  if "model" in axes:
    return start + (
      "activations of every layer, which more rows do not make fewer. "
      f"Fewer chips a layer (mesh.model={row.mesh['model'] // 2} in place of {row.mesh['model']}) would mend it, as "
      "far as parameters and states then fit; where tokens are many, mesh.seq splits them with less exchange.")
  if "seq" in axes:
    return start + (
      "what one part of a row hands to the next. Fewer parts "
      f"(mesh.seq={row.mesh['seq'] // 2} in place of {row.mesh['seq']}) or longer rows (data.update_len) would mend "
      "it.")
  return start + _mend_data(row)


def _mend_data(row: Row) -> str:
  times, rows = row.roofline, row.batch // row.mesh["data"]
  # the exchange stays while the work grows with the rows
  needed = math.ceil(rows * (1 / MOST_SHARE - 1) * times.interconnect / max(times.compute, times.memory))
  more = (
    "parameters and gradients, as many however many rows a chip has. About "
    f"{needed} rows a chip in place of {rows} (data.batch={needed * row.mesh['data']:,}) would mend it; --search says "
    "whether they fit.")
  over_data = sum(moved for (_, axes), moved in received_by(row).items() if axes == "data")
  size = row.mesh["data"]
  summed = 2 * 4 * row.parameters * (size - 1) / size  # gradients of float32; XLA may add them in bfloat16
  if row.fsdp and summed < over_data and row.peak_bytes + row.whole_bytes <= row.machine.chip.usable_bytes:
    more += (
      f" Or mesh.fsdp=False: parameters are then gathered no more, and their gradients' sum brings a chip at most "
      f"{figure(summed / 1e9)} GB in place of {figure(over_data / 1e9)}; the training state takes "
      f"{figure(row.whole_bytes / 1e9)} GB of it.")
  return more


def series_name(config: Config, largest: Machine) -> str:
  """Of the rows that belong together: the config, rows a slice of `data`, and what its mesh has beyond `data`."""
  mesh = config.mesh
  rows = config.data.batch // mesh_sizes(dataclasses.replace(mesh, data=-1), largest.chips)[0]
  parts = [f"model{mesh.model}"] * (mesh.model > 1) + [f"seq{mesh.seq}"] * (mesh.seq > 1) + ["whole"] * (not mesh.fsdp)
  return "_".join([config.name, f"{rows}x{config.data.update_len}", *parts])
