"""Will it fit? Compiles an update of a config for chips that are not there, and says what it takes.

python scripts/preflight.py configs/vq_pg19.py --topology=v5e:16x16 --config.mesh.model=4
python scripts/preflight.py configs/vq_pg19.py --topology=v5e:16x16 --config.mesh.model=4 --shardings
python scripts/preflight.py configs/lattice_pg19.py --topology=v5p:2x2x1 --search
python scripts/preflight.py configs/vq_enwik8.py --topology=v5e --weak=1,4,16,64 --out=weak
python scripts/preflight.py --table --out=docs/results/preflight

Prints the peak of a chip's memory, what the chips exchange, the time that compute, memory and interconnect take at
their peaks, which of them binds, and what --utilisation, an assumption, makes of it; with --shardings instead which
chip holds which part of what, for which nothing is compiled; with --search instead the largest update that fits, and
the flags that make it; with --weak instead the exchange on each of these numbers of chips, all with as many rows a
chip, and which change would mend it where it is too much; with --table instead a page of the paper's configs, each on
three topologies of TPUs, or with --only=h100 on eight GPUs. Fields of the config are changed as for train.py. What
--weak and --table have compiled lies in --out, and the same command goes on from there. Topologies: v5e:1x1 … 16x16,
v6e likewise, v5p:2x2x1 … 8x16x16, h100:1 and 8. For other GPUs and v4, for which no whole update is compiled here, it
prints what follows from formulas, and says what does not. `bash scripts/aot.sh environment tpu` brings the compiler for
TPUs, `… h100` that for an H100.
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

from lattice_jax.chips import CHIPS, parse_topology
from lattice_jax.commands.arguments import Parser, of, path, place, positive_number, positives
from lattice_jax.commands.flags import expand_config_fields
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.domains import Number

if TYPE_CHECKING:
  from lattice_jax.config import Config
  from lattice_jax.preflight.account import Account
  from lattice_jax.preflight.machine import Machine

ROOT = Path(__file__).resolve().parents[1]
# The rows of --table: the papers' configs, what a slice of 256 chips needs to hold one, and where.
CONFIGS = {
  "vq_enwik8": (), "vq_pg19": ("mesh.model=4",), "vq_imagenet64": (), "lattice_1b": (), "delta_1b": (),
  "lattice_pg19": (), "delta_pg19": (), "full_pg19": (), "lattice_enwik8": (), "delta_enwik8": (), "full_enwik8": (),
  "lattice_imagenet64": (), "delta_imagenet64": (), "full_imagenet64": (), "anchor_pg19": (), "local_pg19": (),
  "hybrid_pg19": (), "anchor_enwik8": (), "local_enwik8": (), "hybrid_enwik8": ()}
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16", "h100:8")
PRICE = 2.0  # of a chip-hour in --table where none is given, as on docs/scaling.md


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("config", nargs="?", type=place, help="FILE[:VARIANT,…], as in configs/vq_enwik8.py")
  parser.add_argument("--topology", help="CHIP:SIZE, such as v5e:16x16, v5p:4x4x4 or h100:8; with --weak only the CHIP")
  parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE",
                      help="change of the config; --config.SECTION.FIELD=VALUE is the same")
  parser.add_argument("--shardings", action="store_true", help="who holds what; compiles nothing")
  parser.add_argument("--search", action="store_true", help="the largest batch × tokens × remat that fits")
  parser.add_argument("--weak", type=positives, metavar="CHIPS,…", help="weak scaling over these numbers of chips")
  parser.add_argument("--table", action="store_true", help="the page of the paper's configs")
  parser.add_argument("--only", default="", help="with --table: rows whose CONFIG@CHIP:SIZE contains this; those of "
                      "GPUs only where h100 is in it")
  parser.add_argument("--out", type=path, help="with --weak and --table: the folder of the page and its rows")
  parser.add_argument(
    "--utilisation", type=of(Number(float, 0, 1, is_low_open=True)), default=0.3,
    help="share of the bound that is reached, an assumption")
  parser.add_argument("--price", type=positive_number, help="of a chip for an hour; without it no costs are printed")
  arguments = parser.parse_args(expand_config_fields(sys.argv[1:]))
  check(parser, arguments)
  if arguments.table:
    return tabulate(arguments)
  if arguments.weak:
    return scale(arguments)
  return answer(arguments)


def check(parser: Parser, arguments: argparse.Namespace) -> None:
  """Refuses what has no answer together."""
  questions = [name for name in ("shardings", "search", "weak", "table") if getattr(arguments, name)]
  if len(questions) > 1:
    parser.error(f"--{questions[0]} and --{questions[1]} are two questions; ask one at a time.")
  is_page = arguments.table or bool(arguments.weak)
  if is_page != bool(arguments.out):
    parser.error("--weak and --table write to a folder; name it with --out." if is_page else
                 "--out is for --weak and --table; other answers are printed.")
  if arguments.table and (arguments.config or arguments.topology or arguments.set):
    parser.error("--table has its own configs and topologies; leave out others, or ask for one config without --table.")
  if arguments.only and not arguments.table:
    parser.error("--only chooses rows of --table; name the one config without it.")
  if not arguments.table and not (arguments.config and arguments.topology):
    parser.error("name a CONFIG and --topology=CHIP:SIZE, as in configs/vq_enwik8.py --topology=v5e:4x4.")


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
  if not asked.chip.compiler and not arguments.search:
    return print_now(report.formula_text(config, asked, everything_held(config, mesh), utilisation=share))
  asked.check_compiles()
  ensure_compiler(asked.chip.compiler)
  if arguments.search:
    search.use_least_effort()
    found = search.search(config, asked, measure)
    return print_now(f"\n{report.search_text(found)}")
  taken = account.take_account(config, asked)
  return print_now(report.account_text(taken, utilisation=share, price=arguments.price))


def measure(config: Config, machine: Machine) -> Account:
  """An account, and a line that says so: a search takes minutes."""
  from lattice_jax.preflight.account import take_account

  taken = take_account(config, machine)
  print_now(
    f"{config.name} on {machine.name}: {config.data.batch} rows × {config.data.update_len:,} tokens, remat "
    f"{config.model.remat}: {taken.peak_bytes / 1e9:.2f} GB{'' if taken.fits else ', refused'} ({taken.seconds:.0f} s)")
  return taken


def scale(arguments: argparse.Namespace) -> None:
  """Writes the rows of one config, and the page of all whose rows lie in the folder."""
  is_tpu = arguments.topology not in CHIPS or CHIPS[arguments.topology].is_tpu
  os.environ["LATTICE_JAX_BACKEND"] = "tpu" if is_tpu else "gpu"
  from lattice_jax.config_text import read_config
  from lattice_jax.preflight import stored, weak, weak_page

  config = read_config(arguments.config, arguments.set)
  machines = weak.machines_of(arguments.topology, arguments.weak)
  points = [(weak.with_rows_of(config, machines[-1], machine), machine) for machine in machines]
  machines[0].check_compiles()
  ensure_compiler(machines[0].chip.compiler)
  name = weak.series_name(config, machines[-1])
  rows = [stored.stored_row(arguments.out / "rows", name, *point, measure) for point in points]
  print_now(f"\n{weak.scaling_table(rows)}\n" + "".join(f"\n{weak.advice(row)}" for row in rows if weak.advice(row)))
  weak_page.write_page(arguments.out)


def tabulate(arguments: argparse.Namespace) -> None:
  """Compiles what the folder lacks, row by row, and rewrites the page after each."""
  is_tpu = "h100" not in arguments.only
  os.environ["LATTICE_JAX_BACKEND"] = "tpu" if is_tpu else "gpu"
  ensure_compiler("tpu" if is_tpu else "h100")
  from lattice_jax.config_text import read_config
  from lattice_jax.evaluation.result_tables import write_text
  from lattice_jax.preflight import stored, table

  points = {}
  for name, changes in CONFIGS.items():
    config = read_config(str(ROOT / "configs" / f"{name}.py"), changes)
    for topology in TOPOLOGIES:
      machine = table.largest_machine(config, topology)
      points[f"{name}@{machine.name}"] = name, config, machine
  chosen = [key for key, (_, _, machine) in points.items() if arguments.only in key and machine.chip.is_tpu == is_tpu]
  if not chosen:
    raise ValueError(f"--only={arguments.only} is in none of {', '.join(points)}.")

  def write() -> None:
    files = {key: stored.row_path(arguments.out / "rows", name, machine) for key, (name, _, machine) in points.items()}
    rows = [stored.read_row(file) for file in files.values() if file.is_file()]
    missing = {name: [machine.name for key, (other, _, machine) in points.items()
                      if other == name and not files[key].is_file()] for name in CONFIGS}
    write_text(arguments.out / "README.md", table.page(
      rows, missing, ROOT / "docs" / "results" / "aot", utilisation=arguments.utilisation,
      command=f"python scripts/preflight.py --table --out={arguments.out}", price=arguments.price or PRICE))

  for key in chosen:
    stored.stored_row(arguments.out / "rows", *points[key], measure)
    write()


if __name__ == "__main__":
  run_script(main)
