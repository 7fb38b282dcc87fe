"""Audits the slots of a trained Lattice model on one text: what they hold, which tokens wrote it, how similar they are.

python scripts/audit.py --workdir=runs/lattice_enwik8 --out=audit  # first document of the test split
python scripts/audit.py --workdir=runs/lattice_enwik8 --text=book.txt --out=audit --tokens=2048

Writes audit.html (a single file for the browser), audit.json (every number) and the heat maps as PNG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, count, one_of, path, positive, positive_number
from lattice_jax.commands.run import run_script


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("--workdir", type=path, required=True, help="folder of the run")
  parser.add_argument("--step", type=count, help="checkpoint; by default the newest")
  what = parser.add_mutually_exclusive_group()
  what.add_argument("--text", type=path, help="a file to read")
  what.add_argument("--split", type=one_of("train", "validation", "test"), default="test",
                    help="split of the run's own data, if no file is given")
  parser.add_argument("--document", type=count, help="number in the split; by default 0, the first")
  parser.add_argument("--tokens", type=positive, default=1024, help="how many to read, at most")
  parser.add_argument("--threshold", type=positive_number, default=0.1,
                      help="radians from which turning a slot counts as a write")
  parser.add_argument("--top", type=positive, default=5, help="how many tokens to show for each slot")
  parser.add_argument("--out", type=path, required=True, help="folder for the report")
  arguments = parser.parse_args()
  if arguments.text is not None and arguments.document is not None:
    parser.error(f"--document={arguments.document} is one of the split's, and --text is read instead; leave one out.")
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.evaluation.loaded_model import load_run  # --help need not wait for JAX
  from lattice_jax.inspect.slot_audit import audit, text_tokens

  model = load_run(arguments.workdir, step=arguments.step, overrides=())
  where, ids = text_tokens(model, arguments.text, arguments.split, arguments.document or 0, arguments.tokens)
  print(f"{model.describe()}\nreads {len(ids):,} tokens of {where}", flush=True)
  for file in audit(model, where, ids, arguments.out, threshold=arguments.threshold, top=arguments.top):
    print(f"wrote {file}")


if __name__ == "__main__":
  run_script(main)
