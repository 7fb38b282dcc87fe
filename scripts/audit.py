"""The slots of a trained Lattice model on one text: what they hold, who wrote it, how alike they are.

python scripts/audit.py --workdir=runs/lattice_enwik8 --out=audit  # first document of the test split
python scripts/audit.py --workdir=runs/lattice_enwik8 --text=book.txt --out=audit --tokens=2048

Writes audit.html (one file, open it in a browser), audit.json (every number) and the heat maps as PNG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=Path, required=True, help="folder of the run")
  parser.add_argument("--step", type=int, help="checkpoint; the newest when not given")
  what = parser.add_mutually_exclusive_group()
  what.add_argument("--text", type=Path, help="a file to read")
  what.add_argument("--split", default="test", help="of the run's own data, where no file is given")
  parser.add_argument("--document", type=int, default=0, help="of the split")
  parser.add_argument("--tokens", type=int, default=1024, help="to read, at most")
  parser.add_argument("--threshold", type=float, default=0.1, help="radians by which a token turns a slot it writes to")
  parser.add_argument("--top", type=int, default=5, help="tokens shown for each slot")
  parser.add_argument("--out", type=Path, required=True, help="folder for the report")
  arguments = parser.parse_args()
  for name in ("tokens", "threshold", "top"):
    if getattr(arguments, name) <= 0:
      parser.error(f"--{name}={getattr(arguments, name)} must be positive.")
  try:
    run(arguments)
  except (ValueError, OSError) as error:
    print(f"audit.py: {error}", file=sys.stderr)
    sys.exit(2)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.evaluation import command  # --help need not wait for JAX
  from lattice_jax.inspect.slot_audit import audit, text_tokens
  from lattice_jax.runtime import quieten_checkpoints

  quieten_checkpoints()
  task = command.load(arguments.workdir, step=arguments.step, overrides=())
  where, ids = text_tokens(task, arguments.text, arguments.split, arguments.document, arguments.tokens)
  print(f"{task.describe()}\nreads {len(ids):,} tokens of {where}", flush=True)
  for path in audit(task, where, ids, arguments.out, threshold=arguments.threshold, top=arguments.top):
    print(f"wrote {path}")


if __name__ == "__main__":
  main()
