"""Reproduces the published tables, row by row: on two cores with small models, or with the commands for a pod.

python scripts/reproduce.py                                       # all tables and rows, and what is measured
python scripts/reproduce.py lattice_slots                         # the rows of one
python scripts/reproduce.py lattice_slots --scale=sample --jobs=2
python scripts/reproduce.py lattice_slots --row=m16,m192 --scale=sample
python scripts/reproduce.py all --scale=sample --jobs=2           # about 75 minutes on two cores of an AMD EPYC
python scripts/reproduce.py vq_main --scale=paper --topology=v5e:8x8 --price=2 --launcher=tpu_pod
python scripts/reproduce.py vq_main --scale=paper --workdirs runs/vq_enwik8

--scale=sample runs what has no result of today's config, code and data yet, and writes docs/results/reproduce. It goes
on where it was stopped. Runs in --workdirs join where their commit's code, config and data are the same. --scale=paper
runs nothing: it prints the commands, what a training takes, and the figures of runs in --workdirs. Exit status 1: a row
failed, and the others went on; 2: a wrong command.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.chips import parse_topology
from lattice_jax.commands.arguments import Parser, of, one_of, path, positive, positive_number
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.domains import Names, Number, Text, did_you_mean

_OUT, _WORKDIR, _PAPER = Path("docs/results/reproduce"), Path("runs/reproduce"), "paper.json"
_LAUNCHERS = ("none", "tpu_pod", "slurm", "sky")


def main() -> int:
  arguments = parse_arguments()
  if not Path("train.py").exists():
    raise ValueError("run this from the project's folder, where train.py is.")
  from lattice_jax.reproduce.registry import TABLES, find_row, find_table  # --help need not wait for JAX

  if arguments.table not in ("all", *TABLES):
    raise ValueError(
      f"there is no table {arguments.table!r}; there are all, {', '.join(TABLES)}."
      f"{did_you_mean(arguments.table, TABLES)}")
  tables = list(TABLES.values()) if arguments.table == "all" else [find_table(arguments.table)]
  if arguments.row and len(tables) > 1:
    raise ValueError("--row names rows of one table; name the table before it.")
  for name in arguments.row:
    find_row(tables[0], name)
  asked = [(table, row) for table in tables for row in table.rows if not arguments.row or row.name in arguments.row]
  return {None: list_rows, "sample": run_sample, "paper": print_paper}[arguments.scale](asked, arguments)


def parse_arguments() -> argparse.Namespace:
  parser = Parser(__doc__)
  parser.add_argument("table", type=of(Text()), nargs="?", default="all", help="a table, or all")
  parser.add_argument("--row", type=of(Names()), default=(), help="rows of the table, commas between")
  parser.add_argument("--scale", type=one_of("sample", "paper"), help="without it rows are only listed")
  parser.add_argument("--jobs", type=positive, default=1, help="trainings at a time, each on its share of the cores")
  parser.add_argument("--workdir", type=path, default=_WORKDIR, help="folder of the sample's runs")
  parser.add_argument("--workdirs", type=path, nargs="+", default=[], help="runs that may serve, or folders of them")
  parser.add_argument("--out", type=path, default=_OUT, help="folder of results and pages")
  parser.add_argument("--page_only", action="store_true", help="with --scale=sample: runs nothing, writes the pages")
  parser.add_argument("--topology", type=of(Text()), help="CHIP:SIZE of --scale=paper, as in v5e:16x16 (v5e:8x8)")
  parser.add_argument("--price", type=positive_number, help="of a chip for an hour; without it no costs are printed")
  parser.add_argument("--utilisation", type=of(Number(float, 0, 1, is_low_open=True)), default=0.3,
                      help="share of the chips' peak that is reached, an assumption")
  parser.add_argument("--launcher", type=one_of(*_LAUNCHERS), default="none",
                      help="what starts train.py at the paper's scale")
  arguments = parser.parse_args()
  if arguments.page_only and arguments.scale != "sample":
    parser.error("--page_only goes with --scale=sample.")
  if arguments.topology is not None:
    parse_topology(arguments.topology)
  return arguments


def list_rows(asked: list, arguments: argparse.Namespace) -> int:
  """Prints what there is, and how many results of each row are stored, of whatever code."""
  from lattice_jax.reproduce.page import list_text
  from lattice_jax.reproduce.registry import measurements_of
  from lattice_jax.reproduce.results import Store

  store = Store(arguments.out)
  print_now(list_text(asked, {
    f"{table.name}/{row.name}": len(store.results(table.name, row.name)) for table, row in asked}))
  minutes = sum(one.minutes for one in measurements_of([row for _, row in asked]))
  print_now(f"\n{minutes:.0f} minutes are expected for all of these on two cores (--scale=sample --jobs=2).")
  return 0


def run_sample(asked: list, arguments: argparse.Namespace) -> int:
  from lattice_jax.files import lock_folder
  from lattice_jax.reproduce.registry import MEASUREMENTS, measurements_of
  from lattice_jax.reproduce.results import Collector, Store
  from lattice_jax.reproduce.runner import Runner, is_done
  from lattice_jax.reproduce.units import Units

  units, store = Units(MEASUREMENTS, arguments.workdir), Store(arguments.out)
  collector = Collector(units, store, arguments.workdirs)
  stopped, failed = 0, False
  taken = f"another process runs rows in --workdir={arguments.workdir}; stop it first, or choose another folder."
  with lock_folder(arguments.workdir, taken):
    if not arguments.page_only:
      rows = [(table.name, row) for table, row in asked]
      wanted = dict.fromkeys(
        unit for one in measurements_of([row for _, row in asked]) for unit in units.of(one.name)
        if collector.missing(unit, rows))
      # a command reads folders of runs, whatever is stored about them
      for unit in list(wanted):
        wanted |= dict.fromkeys(other for other in units.needed(unit) if not is_done(other))
      print_now(f"{len(wanted)} runs are missing for {len(asked)} rows.")
      runner = Runner(units, jobs=arguments.jobs, say=print_now)
      stopped, failed = runner.run(list(wanted)), bool(runner.failed)
    if stopped:
      return 128 + stopped  # the folders of the runs have everything; the next call writes it
    write_results(collector, store, arguments)
  for problem in collector.problems:
    print_now(problem)
  return int(failed or bool(collector.problems))


def write_results(collector, store, arguments: argparse.Namespace) -> None:
  """Stores the results of all rows, and writes the pages."""
  from lattice_jax.reproduce.page import Found, write_pages
  from lattice_jax.reproduce.registry import TABLES

  found = {}
  for table in TABLES.values():
    for row in table.rows:
      result = found[f"{table.name}/{row.name}"] = collector.row(table.name, row)
      store.put(table.name, row.name, result)
  store.write()
  figures = read_figures(arguments.out)
  pages = write_pages(Found(found, figures), arguments.out, "python scripts/reproduce.py all --scale=sample --jobs=2")
  print_now(f"wrote {', '.join(str(page) for page in pages)}")


def read_figures(out: Path) -> dict:
  """The figures at the paper's size that an earlier call kept, by TABLE/ROW."""
  from lattice_jax.reproduce.paper import Made

  file = out / _PAPER
  stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
  return {key: [Made(**one) for one in made] for key, made in stored.items()}


def print_paper(asked: list, arguments: argparse.Namespace) -> int:
  """Commands, what they take, and the figures of runs that exist, which --out keeps."""
  os.environ["LATTICE_JAX_BACKEND"] = "tpu" if parse_topology(arguments.topology or "v5e:8x8")[0].is_tpu else "gpu"
  from lattice_jax.files import replace_json
  from lattice_jax.reproduce.page import spread_text
  from lattice_jax.reproduce.paper import commands_of, find_figures, workdir_of
  from lattice_jax.reproduce.results import find_runs
  from lattice_jax.reproduce.rows import Train
  from lattice_jax.reproduce.verdicts import judge_published

  runs, seen, figures = find_runs(arguments.workdirs), {}, read_figures(arguments.out)
  for table, row in asked:
    published = f"{row.published.text} {row.published.unit}" if row.published.text else "no figure"
    print_now(f"\n{table.name}/{row.name}: {row.what}\n  published: {published} [{row.published.source}]")
    is_new = isinstance(row.paper.make, Train) and row.paper.make not in seen
    workdir = workdir_of(table, row, seen) if isinstance(row.paper.make, Train) else ""
    for command in commands_of(row.paper, workdir, arguments.launcher):
      print_now(f"  $ {command}")
    print_now(f"  takes: {cost_of(row.paper, arguments) if is_new else 'as above' if workdir else 'not estimated'}")
    found = find_figures(table, row, runs)
    if found:
      figures[f"{table.name}/{row.name}"] = found
    key = f"{table.name}/{row.name}"
    known = [one.figure for one in figures[key]] if key in figures else []
    verdict = judge_published(row.published.text, known, row.paper.incomparable)
    print_now(f"  ours: {spread_text(known) or 'none'} – {verdict}"
              + (f" ({row.paper.incomparable})" if row.paper.incomparable else ""))
  if runs:
    arguments.out.mkdir(parents=True, exist_ok=True)
    replace_json(arguments.out / _PAPER, {key: [asdict(one) for one in made] for key, made in figures.items()})
    print_now(f"\nwrote {arguments.out / _PAPER}; `--scale=sample --page_only` puts it into the pages")
  return 0


def cost_of(paper, arguments: argparse.Namespace) -> str:
  """By the compiler where one was asked for and is there, else by formula."""
  from lattice_jax.reproduce.paper import TOPOLOGY, config_of, estimate, preflight_words

  config, topology = config_of(paper.make), paper.topology or arguments.topology or TOPOLOGY
  if config.model.origin == "init_from":
    return "not estimated: the model is that of --init_from"
  words = preflight_words(paper.make, topology, arguments.price, arguments.utilisation)
  if arguments.topology and has_compiler():
    command = [sys.executable, "scripts/preflight.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout if done.returncode == 0 else done.stderr
    return f"as {shlex.join(['python', *command[1:]])} says:\n    " + "\n    ".join(text.strip().splitlines())
  try:
    known = estimate(config, topology, utilisation=arguments.utilisation)
  except ValueError as error:
    return str(error)
  how = shlex.join(["python", "scripts/preflight.py", *words])
  return f"{known.text(utilisation=arguments.utilisation, price=arguments.price)} Compiled: {how}"


def has_compiler() -> bool:
  """Whether scripts/preflight.py would find libtpu."""
  import importlib.util

  return importlib.util.find_spec("libtpu") is not None or Path(".venv-aot-tpu/bin/python").exists()


if __name__ == "__main__":
  run_script(main)
