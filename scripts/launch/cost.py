"""Prints how long experiments take on a slice, and what they cost, from the operations that they need.

python scripts/launch/cost.py --configs=vq_enwik8,vq_pg19 --type=v5litepod-64 [--utilisation=0.3] [--price=2]

The operations are counted by formula (forward and backward pass of every token, as for `mfu` in the log); the peak is
that of the vendor's data sheet. --utilisation, the share of the peak that is reached, and --price of a chip for an hour
are assumptions: a run's log shows the first, your cloud's price list the second. Evaluations, saves, compilation and
restarts come on top. Measures nothing and needs no accelerator.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lattice_jax.commands.arguments import Parser, of, positive_number
from lattice_jax.commands.domains import Several
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Number, Text
from scripts.launch.slices import Slice, find_slice

if TYPE_CHECKING:
  from lattice_jax.config import Config

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_SECONDS_AN_HOUR = 3600


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument(
    "--configs", type=of(Several(Text())), required=True, help="names of files in configs/, with :VARIANT")
  parser.add_argument("--type", required=True, help="slice, such as v4-32, v5litepod-64, v5p-128, v6e-64 or h100-16")
  parser.add_argument(
    "--utilisation", type=of(Number(float, 0, 1, is_low_open=True)), default=0.3,
    help="share of the peak, an assumption")
  parser.add_argument("--price", type=positive_number, help="of a chip for an hour; without it no costs are printed")
  arguments = parser.parse_args()
  slice = find_slice(arguments.type)
  print(f"{slice.name}: {slice.chips} chips on {slice.hosts} host{'s' * (slice.hosts > 1)}, at "
        f"{arguments.utilisation:.0%} of their peak\n")
  print("\n".join([
    *table(arguments.configs, slice, arguments.utilisation, arguments.price), "", *misfits(arguments.configs, slice)]))
  return 0


def table(names: tuple[str, ...], slice: Slice, utilisation: float, price: float | None) -> list[str]:
  """A Markdown table, one row an experiment."""
  lines = [f"| config | tokens | FLOPs | hours | chip-hours |{' cost |' if price else ''}",
           f"|---|---|---|---|---|{'---|' if price else ''}"]
  for name in names:
    tokens, flops = work(name)
    hours = seconds(flops, slice, utilisation) / _SECONDS_AN_HOUR
    cost = f" {hours * slice.chips * price:,.0f} |" if price else ""
    lines.append(f"| {name} | {tokens / 1e9:.3g}e9 | {flops:.2e} | {hours:,.1f} | {hours * slice.chips:,.0f} |{cost}")
  return lines


def misfits(names: tuple[str, ...], slice: Slice) -> list[str]:
  """Why a config cannot run on the slice as it is: its time is then that of so many operations and no more."""
  from lattice_jax.sharding import check_rows, mesh_sizes

  sentences = []
  for name in names:
    config = _read(name)
    try:
      check_rows(config, data=mesh_sizes(config.mesh, slice.chips)[0])
    except ValueError as error:
      sentences.append(f"{name} does not run on {slice.name} as it is: {error}")
  return sentences


def _read(name: str) -> Config:
  from lattice_jax.config_text import read_config

  file, _, variant = name.partition(":")
  return read_config(f"{_CONFIGS / file}.py{f':{variant}' if variant else ''}", [])


def work(name: str) -> tuple[int, float]:
  """(tokens, floating-point operations) of a whole training."""
  from lattice_jax.models.parameters import flops_per_token

  config = _read(name)
  tokens = config.train.steps * config.data.batch * config.data.update_len
  return tokens, tokens * flops_per_token(config.model, config.data.seq_len)


def seconds(flops: float, slice: Slice, utilisation: float) -> float:
  """The time that a slice takes for so many operations."""
  return flops / (slice.chips * slice.chip.peak_flops * utilisation)


if __name__ == "__main__":
  run_script(main)
