"""Evaluates runs in windows of several lengths, to see what becomes of a memory beyond the length of its training.

python scripts/lengths.py runs/sweeps/lattice_length/* --lengths=512,2048,8192,32768 --out=docs/results/lattice_length

The whole split is read. Every window begins with an empty memory and is read in calls as long as the run's own
sequences, the memory carried from one to the next. Documents of the task `recall` become as long as the windows, so
that pairs and queries are further apart; its value is the share of right answers. Folders that differ in seed=N alone
are one line, with mean and standard deviation.

Writes lengths.jsonl, lengths.md and lengths.png. What lengths.jsonl holds already of the same weights is not measured
again, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path, positive, positives
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.files import replace_file
from lattice_jax.runtime import enable_compilation_cache


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("runs", nargs="+", type=path, help="workdirs of finished runs")
  parser.add_argument("--lengths", type=positives, required=True, help="tokens of a window, as in 512,2048,8192")
  parser.add_argument("--split", type=one_of("train", "validation", "test"), default="test")
  parser.add_argument("--rows", type=positive, default=32, help="windows side by side at the shortest length")
  parser.add_argument("--out", type=path, required=True, help="folder of the table, the plot and the record")
  arguments = parser.parse_args()
  from lattice_jax.sweep.lengths import format_lengths, measure, plot_lengths  # --help need not wait for JAX

  enable_compilation_cache()
  found = measure(
    arguments.runs, sorted(set(arguments.lengths)), arguments.out, split=arguments.split, rows=arguments.rows,
    report=print_now)
  text = format_lengths(found, "python " + shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]]))
  replace_file(arguments.out / "lengths.md", text)
  plot_lengths(found, arguments.out / "lengths.png")
  print_now(f"\n{text}\nwrote lengths.md, lengths.png and lengths.jsonl in {arguments.out}")


if __name__ == "__main__":
  run_script(main)
