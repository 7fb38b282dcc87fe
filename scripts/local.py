"""Reports what a model's attention loses when only a window and a summary of fixed size are left of a long text.

python scripts/local.py --pretrained=smollm2 --out=local
python scripts/local.py --pretrained=smollm2 --out=local --parts=errors --budgets=128,256,512
python scripts/local.py --pretrained=smollm2 --out=local --maps maps.safetensors more_maps.safetensors

Writes report.json (every number), README.md (tables), local.html (the same as one file with its pictures) and pictures.
Parts: the error of attention's output on real queries, keys and values at equal bytes of {larger window, means,
moments, attention matching, moments and LagKV's picks, LagKV, trained features where --maps are given}, and a needle
that nothing looks for until the end.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path, positive, positives, seed, some_of
from lattice_jax.commands.run import run_script

PARTS = ("errors", "needle")


def main() -> None:
  parser = Parser(__doc__)
  parser.add_model("data.source=enwiki_sample")
  parser.add_argument("--split", type=one_of("train", "test"), default="test",
                      help="what to read; settings are chosen on the validation split")
  parser.add_argument("--parts", type=some_of(*PARTS), default=PARTS, help="what to measure, commas between")
  parser.add_argument("--texts", type=positive, default=6, help="texts to read")
  parser.add_argument("--tuning_texts", type=positive, default=1, help="texts on which settings are chosen")
  parser.add_argument("--needle_texts", type=positive, default=3, help="texts with a planted key")
  parser.add_argument("--seq_len", type=positive, default=1536, help="tokens of a text")
  parser.add_argument("--budgets", type=positives, default=(128, 256),
                      help="bytes of one head of one layer, as the tokens that they would hold")
  parser.add_argument("--maps", type=path, nargs="+", default=(),
                      help="files of scripts/fit_far.py, whose features are compared as well")
  parser.add_argument("--seed", type=seed, default=0, help="of the needle's values")
  parser.add_argument("--out", type=path, required=True, help="folder for the report")
  arguments = parser.parse_args()
  parser.check_model(arguments)
  if arguments.maps and arguments.pretrained is None:
    parser.error("--maps are fitted to a pretrained model; give the --pretrained one.")
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.inspect.local.context import Sizes  # --help need not wait for JAX
  from lattice_jax.inspect.local.run import write_report
  from lattice_jax.inspect.local.texts import load_model, read_fitted
  from lattice_jax.runtime import enable_compilation_cache

  enable_compilation_cache()
  loaded = load_model(pretrained=arguments.pretrained, workdir=arguments.workdir, overrides=arguments.set)
  print(loaded.describe(), flush=True)
  sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
  command = shlex.join(["python", "scripts/local.py", *sys.argv[1:]])
  for file in write_report(
    loaded, arguments.out, sizes, split=arguments.split, parts=arguments.parts, command=command,
    report=lambda line: print(line, flush=True), fitted=read_fitted(loaded, arguments.pretrained, arguments.maps)):
    print(f"wrote {file}", flush=True)


if __name__ == "__main__":
  run_script(main)
