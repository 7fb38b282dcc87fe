"""Says where the time of a program goes, by kind of instruction and by part of the model: one update, or SmolLM2.

python scripts/where.py --config=configs/vq_enwik8.py:smoke --out=where/vq
python scripts/where.py --pretrained=smollm2 --part=decode --out=where/decode      # a token, after --tokens of prompt
python scripts/where.py --pretrained=smollm2 --part=first --tokens=16 --out=where/first

Compiles the program, runs it a few times under jax.profiler, and joins the times of HLO instructions with what the
compiled program says of them. Prints tables; writes NAME.json with every instruction, NAME.svg, and the trace itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path, place, positive
from lattice_jax.commands.run import run_script

_PARTS = ("prefill", "decode", "first")
_BLOCK = 16  # tokens of one call while decoding

# (title, HLO of the programs that a call runs, call, what one call is divided by)
Timed = tuple[str, list[str], Callable[[], Any], int]


def main() -> None:
  parser = Parser(__doc__)
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--config", type=place, help="experiment whose update is timed, as in configs/vq_enwik8.py:smoke")
  what.add_argument("--pretrained", type=place, help="smollm2, a folder of safetensors, or a .gguf file")
  parser.add_argument("--part", type=one_of(*_PARTS), help="of a pretrained model: by default decode, one token")
  parser.add_argument("--tokens", type=positive, help="of its prompt; by default 512")
  parser.add_argument("--cache", default="", help="of a pretrained model, as in eval.py --cache")
  parser.add_argument("--calls", type=positive, default=5, help="under the profiler, after one before it")
  parser.add_argument("--out", type=path, required=True, help="folder for the trace, the tables and the picture")
  arguments = parser.parse_args()
  if arguments.config and (arguments.part or arguments.tokens or arguments.cache):
    parser.error("--part, --tokens and --cache are of --pretrained, and --config times an update; leave them out.")
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.bench.harness import describe_machine  # --help need not wait for JAX
  from lattice_jax.inspect.where import format_tables, measure
  from lattice_jax.inspect.where_plots import plot_where

  timed = update(arguments.config) if arguments.config else reading_or_writing(
    arguments.pretrained, arguments.part or "decode", arguments.tokens or 512, arguments.cache, arguments.calls + 1)
  title, texts, call, units = timed
  where = measure(title, texts, call, calls=arguments.calls, folder=arguments.out, units=units)
  print(format_tables(where))
  name = arguments.part or ("update" if arguments.config else "decode")
  (arguments.out / f"{name}.json").write_text(json.dumps(describe_machine() | where.record(), indent=1) + "\n")
  plot_where(where, arguments.out / f"{name}.svg")
  print(f"\nwrote {arguments.out}/{name}.json and {name}.svg")


def update(config_name: str) -> Timed:
  """One update of a config, on its own data."""
  import jax
  import numpy as np

  from lattice_jax.config_text import read_config
  from lattice_jax.data.loader import train_batches
  from lattice_jax.data.sources import load_source
  from lattice_jax.sharding import make_mesh
  from lattice_jax.training.feed import fetch
  from lattice_jax.training.state import create_state, make_optimizer
  from lattice_jax.training.step import make_program

  config = read_config(config_name, ())
  config = replace(config, train=replace(config.train, steps_per_dispatch=1))
  mesh = make_mesh(config.mesh)
  feed = fetch(train_batches(config, load_source(config.data, "train"), start_step=0), config, mesh,
               first_step=0, count=1)
  with jax.set_mesh(mesh):
    state = create_state(config, mesh)
    given = feed.batches, np.int32(0), np.int32(1)
    program = make_program(config, make_optimizer(config), mesh, state).lower(state, *given).compile()

  def call() -> Any:
    nonlocal state
    state, metrics = program(state.replace(step=state.step * 0), *given)
    return metrics

  return f"{config.name}, one update", [program.as_text()], call, 1


def reading_or_writing(name: str, part: str, tokens: int, cache: str, calls: int) -> Timed:
  """A prompt of so many tokens, a token after it, or both up to the first token."""
  import numpy as np

  from lattice_jax.evaluation.caches import cache_overrides
  from lattice_jax.evaluation.loaded_model import load_pretrained_model
  from lattice_jax.inference.generate import GenerateOptions, TokenStream
  from lattice_jax.inference.session import Session

  overrides = cache_overrides(cache) if cache else []
  loaded = load_pretrained_model(name, workdir=None, dtype="float32", overrides=overrides)
  model = loaded.config.model
  prompt = np.random.default_rng(0).integers(5, model.vocab, tokens).astype(np.int32)
  # one block more, as each is drawn while the one before it is read
  length = 1 + _BLOCK * (calls + 1) if part == "decode" else 1
  options = GenerateOptions(temperature=0.0, banned=(), start_ids=(), block_len=_BLOCK, marker=loaded.marker)

  def begin() -> TokenStream:
    return TokenStream(model, loaded.variables, [prompt], length=length, options=options)

  stream, title = begin(), f"{loaded.config.name}{f', {cache}' if cache else ''}"
  if part == "decode":
    blocks = iter(stream)
    next(blocks)
    return f"{title}, a token after {tokens:,}", [stream.hlo[1]], lambda: next(blocks), _BLOCK
  if part == "first":
    return f"{title}, the first token after {tokens:,}", [*stream.hlo], lambda: [*begin()], 1

  def read() -> Any:
    like = stream.session
    session = Session(
      like.model, like.variables, batch=1, max_len=like.max_len, chunk_len=like.chunk_len, marker=like.marker)
    session.read([prompt])
    return session.state.logits_BA

  return f"{title}, a prompt of {tokens:,}", [stream.hlo[0]], read, 1


if __name__ == "__main__":
  run_script(main)
