"""Runs a W&B sweep file without W&B's server, and writes a table and a plot of the results.

python scripts/sweep.py configs/sweeps/vq_ablation.yaml [--workdir=runs/sweeps/vq_ablation] [--jobs=1]
python scripts/sweep.py configs/sweeps/vq_ablation.yaml --table_only --beyond=128 --against=config=base

Every trial trains in a folder of its own in the workdir. On Ctrl-C and SIGTERM the running trials save. The same
command resumes the sweep: stopped and failed trials resume from their checkpoints, and finished ones are not repeated.
Results are averaged over parameters whose names end in "seed". Writes table.md, table.jsonl, table.csv and plot.png.
`wandb sweep` runs the same file online; here W&B gets nothing unless WANDB_MODE is set. Exit status 1: a trial failed;
2: a wrong command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positive, positives, seed
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.sweep.sweep_file import Sweep, read_sweep


def main() -> int:
  arguments = parse_arguments()
  from lattice_jax.sweep.runner import Runner  # --help need not wait for JAX
  from lattice_jax.sweep.search import make_search
  from lattice_jax.sweep.table import check_against

  sweep = read_sweep(arguments.file)
  workdir = arguments.workdir or Path("runs/sweeps") / arguments.file.stem
  search = make_search(sweep, workdir, arguments.seed)
  check_against(sweep, arguments.against)
  stopped_by, failed = 0, 0
  if arguments.table_only:
    if not workdir.is_dir():
      raise ValueError(
        f"--table_only finds no trial: there is no folder {workdir}; run the sweep first, or name its --workdir.")
  else:
    if not Path(sweep.program).exists():
      raise ValueError(f"program={sweep.program} of {sweep.path} is not a file here; run from the project's folder.")
    runner = Runner(sweep, search, workdir, jobs=arguments.jobs, say=print_now)
    stopped_by, failed = runner.run(), runner.failed
  report(sweep, workdir, search.total, arguments)
  return 128 + stopped_by if stopped_by else int(failed > 0)


def parse_arguments() -> argparse.Namespace:
  parser = Parser(__doc__)
  parser.add_argument("file", type=path, help="a sweep in W&B's format, as in configs/sweeps")
  parser.add_argument("--workdir", type=path, help="by default runs/sweeps/ with the file's name")
  parser.add_argument("--jobs", type=positive, default=1, help="trials at a time, each on its share of the cores")
  parser.add_argument("--seed", type=seed, default=0, help="seed of random and Bayesian search")
  parser.add_argument("--table_only", action="store_true", help="only write table and plot of the finished trials")
  parser.add_argument("--beyond", type=positives, default=(), metavar="N,…",
                      help="add columns with the loss at positions from N on")
  parser.add_argument("--against", default="", metavar="SETTING",
                      help="add columns with differences to this row, as in codes=256, or to the first")
  parser.add_argument("--x", action="append", default=[], metavar="PARAMETER",
                      help="plot only this (full name); PARAMETER=WORD plots its values WORD16, WORD32, … as numbers")
  parser.add_argument("--out", type=path, help="folder of table and plot; by default the workdir")
  return parser.parse_args()


def report(sweep: Sweep, workdir: Path, total: int, arguments: argparse.Namespace) -> None:
  """Prints and writes the table, and also the plot if two settings are done."""
  from lattice_jax.sweep.plot import plot_table
  from lattice_jax.sweep.table import make_table
  from lattice_jax.sweep.table_files import format_table, write_table

  table = make_table(
    sweep, workdir, total=total, command=command_line(), beyond=arguments.beyond, against=arguments.against)
  out = arguments.out or workdir
  write_table(table, out)
  print(f"\n{format_table(table)}\nwrote {out}/table.md, table.jsonl, table.csv", end="")
  if len(table.rows) > 1 and table.varying:
    plot_table(table, out / "plot.png", arguments.x)
    print(" and plot.png", end="")
  print(flush=True)


def command_line() -> str:
  """The command that trains and then makes the table, without the table's folder."""
  words = [word for word in sys.argv[1:] if word != "--table_only" and not word.startswith("--out=")]
  return shlex.join(["python", os.path.relpath(__file__), *words])


if __name__ == "__main__":
  run_script(main)
