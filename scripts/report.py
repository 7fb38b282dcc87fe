"""Makes one HTML page about a run, or about many beside one another, to be opened in a browser.

python scripts/report.py runs/vq_books                                  # one run
python scripts/report.py runs/vq_books runs/lattice_books --out=both.html
python scripts/report.py runs/sweeps/lattice_slots --out=slots.html     # every run in the folder of a sweep

The page holds results and evaluations as tables that sort, curves, the fields in which configs differ, heat maps of
slots, codebooks, anchors and caches where other commands left them in the workdir (it says which), texts that the model
wrote, and commits, versions and devices. It is a single file and fetches nothing.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path
from lattice_jax.commands.run import run_script


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("workdirs", nargs="+", type=path, help="folders of runs, or of sweeps")
  parser.add_argument("--out", type=path, help="the page to write, which may replace one; by default report.html in "
                                               "the folder, or here where several are given")
  arguments = parser.parse_args()
  out = arguments.out or default_out(arguments.workdirs)
  from lattice_jax.report.page import summary_of, title_of, write_page  # --help need not wait for JAX
  from lattice_jax.report.workdir import read_runs
  from lattice_jax.runtime import git_commit

  runs, notes = read_runs(arguments.workdirs)
  for note in notes:
    print(f"report.py: {note}", file=sys.stderr)
  summary = summary_of(runs)
  origin = (f"{summary}. Made on {datetime.datetime.now():%Y-%m-%d %H:%M} at commit {git_commit() or 'unknown'} by: "
            f"python scripts/report.py {shlex.join(sys.argv[1:])}")
  write_page(out, runs, title=title_of(runs), origin=origin)
  print(f"{summary}\nwrote {out}")


def default_out(workdirs: list[Path]) -> Path:
  """In the only folder; for several a new file here."""
  if len(workdirs) == 1:
    return workdirs[0] / "report.html"
  if Path("report.html").exists():
    raise ValueError("report.html exists already; name the file to write with --out, which may replace one.")
  return Path("report.html")


if __name__ == "__main__":
  run_script(main)
