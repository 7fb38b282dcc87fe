"""Plots of runs as PNG.

python scripts/plot.py runs/a runs/b --out=loss.png              # bits per byte over updates
python scripts/plot.py runs/a/eval_test_*.json --out=pos.png     # bits per byte by position
python scripts/plot.py --what=answers runs/*/eval_test_*.json    # accuracy on a task, by pairs and by distance
python scripts/plot.py --what=codebook runs/a --out=codes.png    # use of the codes, layer by layer
python scripts/plot.py --what=retrieval runs/smollm2/passkey_*   # a --task under caches: accuracy by bytes, by depth
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path
from lattice_jax.commands.run import run_script

_PLOTS = ("loss", "position", "codebook", "answers", "retrieval")


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("paths", nargs="+", type=path, help="workdirs, or JSON files written by eval.py")
  parser.add_argument("--what", type=one_of(*_PLOTS),
                      help="by default loss for workdirs, position for JSON files")
  parser.add_argument("--out", type=path, help="the PNG to write; by default a new file, named after the plot")
  arguments = parser.parse_args()
  what = arguments.what or default_plot(arguments.paths)
  out = arguments.out or default_out(what)
  written = draw(what, arguments.paths, out)
  print("\n".join(f"wrote {path}" for path in written))


def default_plot(paths: list[Path]) -> str:
  are_files = {path.suffix == ".json" for path in paths}
  if len(are_files) > 1:
    raise ValueError("workdirs and eval files make different plots; give only the one or the other.")
  return "position" if are_files.pop() else "loss"


def default_out(what: str) -> Path:
  """A default name never replaces a file; where several are written, not even one that begins with it."""
  patterns = {"retrieval": "retrieval*.png", "codebook": "codebook.*"}
  taken = sorted(Path().glob(patterns[what] if what in patterns else f"{what}.png"))
  if taken:
    raise ValueError(f"{taken[0]} exists already; name the file to write with --out, which may replace one.")
  return Path(f"{what}.png")


def draw(what: str, paths: list[Path], out: Path) -> list[Path]:
  if what in ("codebook", "retrieval") and len(paths) > 1:
    raise ValueError(f"--what={what} draws one folder at a time, not {len(paths)}.")
  if what == "retrieval":
    from lattice_jax.inspect.retrieval_plots import plot_retrieval

    return plot_retrieval(paths[0], out)
  if what == "codebook":
    from lattice_jax.inspect.codebooks import plot_codebook  # the other plots do not need JAX's devices

    return plot_codebook(paths[0], out)
  from lattice_jax.inspect import plots

  drawing = {"loss": plots.plot_loss, "position": plots.plot_buckets, "answers": plots.plot_answers}
  drawing[what](paths, out)
  return [out]


if __name__ == "__main__":
  run_script(main)
