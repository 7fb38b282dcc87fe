"""Reports what a model loses and saves when closed segments are known by their anchors alone.

python scripts/anchors.py --pretrained=smollm2 --out=anchors
python scripts/anchors.py --workdir=runs/anchor_smollm2 --out=anchors
python scripts/anchors.py --pretrained=smollm2 --after=runs/anchor_smollm2 --out=anchors

Writes report.json (every number), README.md (tables) and pictures: the loss under full attention, under the mask and
with the reduced cache; bytes and time of the caches; loss by place in the segment, verbatim recall by distance, tasks
with one anchor a demonstration, and which anchors are read.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, of, one_of, path, positive, seed, some_of
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Text

PARTS = ("text", "cache", "recall", "demonstrations", "attention")


def main() -> None:
  parser = Parser(__doc__)
  parser.add_model("model.anchor.max_segment=64")
  parser.add_argument("--after", type=path, help="a run that was trained on from this model, to compare with it")
  parser.add_argument("--anchors", type=of(Text()),
                      help="punctuation, line, every:N, ids:N,N or token:TEXT; by default the run's own rule, or else "
                           "punctuation")
  parser.add_argument("--split", type=one_of("train", "validation", "test"), default="test", help="what to read")
  parser.add_argument("--parts", type=some_of(*PARTS), default=PARTS, help="what to measure, commas between")
  parser.add_argument("--windows", type=positive, default=8, help="windows of the text")
  parser.add_argument("--seq_len", type=positive, default=512, help="tokens of a window")
  parser.add_argument("--chunk_len", type=positive, default=64, help="tokens of a call of the reduced cache")
  parser.add_argument("--context", type=positive, default=2048, help="tokens for which the caches have room")
  parser.add_argument("--steps", type=positive, default=16, help="decode steps, the last tokens of the context")
  parser.add_argument("--trials", type=positive, default=8, help="prompts of each kind")
  parser.add_argument("--rows", type=positive, default=4, help="texts and prompts that are read in one call")
  parser.add_argument("--seed", type=seed, default=0, help="of the prompts")
  parser.add_argument("--out", type=path, required=True, help="folder for the report")
  arguments = parser.parse_args()
  parser.check_model(arguments)
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.inspect.anchors.readers import load_model  # --help need not wait for JAX
  from lattice_jax.inspect.anchors.run import Sizes, write_report
  from lattice_jax.runtime import enable_compilation_cache

  enable_compilation_cache()
  loaded = load_model(
    pretrained=arguments.pretrained, workdir=arguments.workdir, rule=arguments.anchors, overrides=arguments.set)
  after = arguments.after and load_model(
    pretrained=None, workdir=arguments.after, rule=loaded.config.data.anchors.rule, overrides=())
  print(loaded.describe(), flush=True)
  sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
  command = shlex.join(["python", "scripts/anchors.py", *sys.argv[1:]])
  for file in write_report(
    loaded, after or None, arguments.out, sizes, split=arguments.split, parts=arguments.parts, command=command,
    say=lambda line: print(line, flush=True)):
    print(f"wrote {file}", flush=True)


if __name__ == "__main__":
  run_script(main)
