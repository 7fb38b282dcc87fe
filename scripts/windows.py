"""Chooses the window of every head of a model for local attention, on calibration texts and without training.

python scripts/windows.py --pretrained=smollm2 --budget=512 --out=smollm2.json
python scripts/windows.py --pretrained=smollm2 --set=model.local.far=mean --budget=512 --out=smollm2_mean.json

Every head gets a rung of model.local.rungs or the whole document, in such a way that all of them keep no more bytes
than windows of --budget tokens everywhere do. Writes the profile, which eval.py and train.py take as
model.local.profile, with two baselines of as many bytes, uniform and retrieval_heads; beside it a log of every choice
(.log.jsonl) and the errors on which they rest (.errors.json).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path, positive
from lattice_jax.commands.run import run_script


def main() -> None:
  parser = Parser(__doc__)
  parser.add_model("model.local.far=mean")
  parser.add_argument("--split", type=one_of("train", "validation"), default="train", help="what to calibrate on")
  parser.add_argument("--budget", type=positive, required=True,
                      help="the rung that would be every head's window; the heads together keep no more bytes")
  parser.add_argument("--context", type=positive, default=2048,
                      help="tokens of a document, all of which a head keeps that sees everything")
  parser.add_argument("--texts", type=positive, default=2, help="texts to calibrate on")
  parser.add_argument("--seq_len", type=positive, default=2048, help="tokens of a text")
  parser.add_argument("--stride", type=positive, default=16, help="of so many queries one is looked at")
  parser.add_argument("--weighed", type=positive, default=512, help="tokens from which the layers' weights are found")
  parser.add_argument("--out", type=path, required=True, help="file for the profile")
  arguments = parser.parse_args()
  parser.check_model(arguments)
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.inspect.windows.calibrate import Sizes, load_model, make_profile, measure_heads  # JAX takes a second
  from lattice_jax.inspect.windows.profile_files import write_all
  from lattice_jax.runtime import enable_compilation_cache

  enable_compilation_cache()
  loaded = load_model(pretrained=arguments.pretrained, workdir=arguments.workdir, overrides=arguments.set)
  print(loaded.describe(), flush=True)
  sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
  calibration = measure_heads(
    loaded, sizes, split=arguments.split, report=lambda line: print(line, flush=True))
  profile, steps = make_profile(loaded, calibration, budget=arguments.budget, context=arguments.context)
  command = shlex.join(["python", "scripts/windows.py", *sys.argv[1:]])
  facts = {"command": command, "budget": arguments.budget, "context": arguments.context, "split": arguments.split}
  for file in write_all(arguments.out, profile, steps, calibration, facts | vars(sizes)):
    print(f"wrote {file}", flush=True)


if __name__ == "__main__":
  run_script(main)
