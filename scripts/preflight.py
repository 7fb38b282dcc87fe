"""Will it fit? Compiles an update of a config for chips that are not there, and says what it takes.

python scripts/preflight.py configs/vq_pg19.py --topology=v5e:16x16 --config.mesh.model=4
python scripts/preflight.py configs/vq_pg19.py --topology=v5e:16x16 --config.mesh.model=4 --shardings
python scripts/preflight.py configs/lattice_pg19.py --topology=v5p:2x2x1 --search

Prints the peak of a chip's memory, what the chips exchange, the time that compute, memory and interconnect take at
their peaks, which of them binds, and what --utilisation, an assumption, makes of it; with --shardings instead which
chip holds which part of what, for which nothing is compiled; with --search instead the largest update that fits, and
the flags that make it. Fields of the config are changed as for train.py. Topologies: v5e:1x1 … 16x16, v6e likewise,
v5p:2x2x1 … 8x16x16. For h100:1, h100:8 and other GPUs, for which no whole update is compiled here, it prints what
follows from formulas, and says what does not. The compiler is that of `bash scripts/aot.sh environment tpu`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.aot.environment import VARIABLES, ensure_compiler

os.environ.update(VARIABLES)

from lattice_jax.chips import parse_topology
from lattice_jax.commands.arguments import Parser, of, place, positive_number
from lattice_jax.commands.flags import expand_config_fields
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.domains import Number

if TYPE_CHECKING:
  from lattice_jax.config import Config
  from lattice_jax.preflight.account import Account
  from lattice_jax.preflight.machine import Machine


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("config", type=place, metavar="CONFIG", help="FILE[:VARIANT,…], as in configs/vq_enwik8.py")
  parser.add_argument("--topology", required=True, help="CHIP:SIZE, such as v5e:16x16, v5p:4x4x4 or h100:8")
  parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE",
                      help="change of the config; --config.SECTION.FIELD=VALUE is the same")
  parser.add_argument("--shardings", action="store_true", help="who holds what; compiles nothing")
  parser.add_argument("--search", action="store_true", help="the largest batch × tokens × remat that fits")
  parser.add_argument(
    "--utilisation", type=of(Number(float, 0, 1, is_low_open=True)), default=0.3,
    help="share of the bound that is reached, an assumption")
  parser.add_argument("--price", type=positive_number, help="of a chip for an hour; without it no costs are printed")
  arguments = parser.parse_args(expand_config_fields(sys.argv[1:]))
  if arguments.shardings and arguments.search:
    parser.error("--shardings and --search are two questions; ask one at a time.")
  answer(arguments)


def answer(arguments: argparse.Namespace) -> None:
  """Refuses what cannot be before it looks for a compiler."""
  os.environ["LATTICE_JAX_BACKEND"] = "tpu" if parse_topology(arguments.topology)[0].is_tpu else "gpu"
  from lattice_jax.config_text import read_config  # --help need not wait for JAX
  from lattice_jax.preflight import account, machine, report, search
  from lattice_jax.preflight.held import everything_held

  config, asked = read_config(arguments.config, arguments.set), machine.find_machine(arguments.topology)
  mesh, share = machine.abstract_mesh(config, asked), arguments.utilisation
  if arguments.shardings:
    return print_now(report.holdings_text(config, everything_held(config, mesh), mesh))
  if not asked.chip.compiles_here and not arguments.search:
    return print_now(report.formula_text(config, asked, everything_held(config, mesh), utilisation=share))
  asked.check_compiles()
  ensure_compiler("tpu")
  if arguments.search:
    found = search.search(config, asked, measure)
    return print_now(f"\n{report.search_text(found, utilisation=share)}")
  taken = account.take_account(config, asked)
  return print_now(report.account_text(taken, utilisation=share, price=arguments.price))


def measure(config: Config, machine: Machine) -> Account:
  """An account, and a line that says so: a search takes minutes."""
  from lattice_jax.preflight.account import take_account

  taken = take_account(config, machine)
  print_now(
    f"{config.data.batch} rows × {config.data.update_len:,} tokens, remat {config.model.remat}: "
    f"{taken.peak_bytes / 1e9:.2f} GB{'' if taken.fits else ', refused'} ({taken.seconds:.0f} s)")
  return taken


if __name__ == "__main__":
  run_script(main)
