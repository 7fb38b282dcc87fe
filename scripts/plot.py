"""Plots of runs as PNG.

python scripts/plot.py runs/a runs/b --out=loss.png              # bits per byte over updates
python scripts/plot.py runs/a/eval_test_cold.json --out=pos.png  # bits per byte by position
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.inspect import plots


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("paths", nargs="+", type=Path, help="workdirs, or JSON files written by eval.py")
  parser.add_argument("--out", type=Path, default=Path("loss.png"), help="the PNG to write")
  arguments = parser.parse_args()
  are_files = {path.suffix == ".json" for path in arguments.paths}
  try:
    if len(are_files) > 1:
      raise ValueError("workdirs and eval files make different plots; give only the one or the other.")
    (plots.plot_buckets if are_files.pop() else plots.plot_loss)(arguments.paths, arguments.out)
  except (ValueError, OSError) as error:
    print(f"plot.py: {error}", file=sys.stderr)
    sys.exit(2)
  print(f"wrote {arguments.out}")


if __name__ == "__main__":
  main()
