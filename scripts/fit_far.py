"""Fits the maps of model.local.far=features to a pretrained model, layer by layer, and writes them to a file.

python scripts/fit_far.py --pretrained=smollm2 --out=maps.safetensors
python scripts/fit_far.py --pretrained=smollm2 --set=model.local.profile=smollm2.json --out=maps.safetensors

The model reads texts under full attention. In every layer by itself, the maps are trained so that sinks, windows and
features together give what full attention gave. Printed is the relative error of attention's output on held-out texts:
with the windows alone, with the maps as they start, and as they are fitted. Windows, sinks, features and hidden units
are those of model.local. A model takes the file as model.local.maps, with model.pattern=local and
model.local.far=features.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, of, path, place, positive, positive_number, seed
from lattice_jax.commands.run import run_script
from lattice_jax.domains import Text


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("--pretrained", type=place, required=True,
                      help="smollm2, a folder of safetensors or a .gguf file")
  parser.add_argument("--set", type=of(Text()), action="append", default=[],
                      help="a change of the config, as in model.local.summary.features=32")
  parser.add_argument("--texts", type=positive, default=24, help="texts of the train split, to fit on")
  parser.add_argument("--held_out", type=positive, default=2, help="texts of the validation split, to score")
  parser.add_argument("--seq_len", type=positive, default=1536, help="tokens of a text")
  parser.add_argument("--stride", type=positive, default=8, help="of so many queries one is looked at")
  parser.add_argument("--steps", type=positive, default=800, help="of Adam in each layer, one text a step")
  parser.add_argument("--rate", type=positive_number, default=0.01, help="learning rate of the first step")
  parser.add_argument("--seed", type=seed, default=0, help="of the maps' start")
  parser.add_argument("--out", type=path, required=True, help="file for the maps")
  run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.inspect.features.run import Sizes, fit_maps  # --help need not wait for JAX
  from lattice_jax.inspect.local.texts import load_model
  from lattice_jax.memories.local.maps_file import FittedMaps, write_maps
  from lattice_jax.models.pretrained import open_pretrained
  from lattice_jax.runtime import enable_compilation_cache, git_commit

  enable_compilation_cache()
  loaded = load_model(pretrained=arguments.pretrained, workdir=None, overrides=arguments.set)
  say(loaded.describe())
  sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
  maps, _ = fit_maps(loaded, open_pretrained(arguments.pretrained).digest, sizes, report=say)
  facts = {"command": shlex.join(["python", "scripts/fit_far.py", *sys.argv[1:]]), "git_commit": git_commit()}
  write_maps(arguments.out, FittedMaps(maps.arrays, {**maps.facts, **facts}))
  say(f"wrote {arguments.out}")


def say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  run_script(main)
