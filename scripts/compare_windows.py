"""Compares the windows of a profile with full attention and with its baselines: loss, bytes and speed in one report.

python scripts/compare_windows.py --pretrained=smollm2 --profile=smollm2.json --out=local_windows
python scripts/compare_windows.py --pretrained=smollm2 --profile=smollm2.json --parts=loss --out=local_windows

Loss: held-out texts, with and without the summary that model.local.far names, also by position; windows while
prefilling alone are one way. Latency: decode steps with random keys and values in the caches, in turn, beside what
their bytes allow. Errors: of attention's output at equal bytes, under a larger window and under each summary. Writes
report.json, README.md, windows.html (the same as one file with its pictures) and pictures. A part that is not measured
is taken from the report.json that is there already, or else named as missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path, positive, positives, some_of
from lattice_jax.commands.run import run_script

if TYPE_CHECKING:
  from lattice_jax.evaluation.loaded_model import LoadedModel
  from lattice_jax.inspect.local.context import Context

PARTS = ("loss", "latency", "errors")
_BOUND_LENGTHS = tuple(2**n for n in range(9, 17))
_TIMED = ("full", "uniform", "chosen")


def main() -> None:
  parser = Parser(__doc__)
  parser.add_model("model.local.far=mean")
  parser.add_argument("--profile", type=path, required=True, help="file of scripts/windows.py")
  parser.add_argument("--split", type=one_of("train", "validation", "test"), default="test", help="what to read")
  parser.add_argument("--parts", type=some_of(*PARTS), default=PARTS, help="what to measure, commas between")
  parser.add_argument("--texts", type=positive, default=4, help="texts")
  parser.add_argument("--seq_len", type=positive, default=2048, help="tokens of a text")
  parser.add_argument("--scored", type=positive, default=1024, help="its last tokens, which count")
  parser.add_argument("--lengths", type=positive, nargs="+", default=[512, 1024, 2048, 4096, 8192],
                      help="tokens in the caches of one row when steps are timed")
  parser.add_argument("--batch", type=positive, default=4, help="rows of one more timing")
  parser.add_argument("--batch_length", type=positive, default=2048, help="and their tokens")
  parser.add_argument("--steps", type=positive, default=30, help="timed steps of each kind")
  parser.add_argument("--budgets", type=positives, default=(128, 256),
                      help="of errors: bytes of one head of one layer, as the tokens that they would hold")
  parser.add_argument("--maps", type=path, nargs="+", default=(),
                      help="of errors: files of scripts/fit_far.py, whose features are compared as well")
  parser.add_argument("--out", type=path, required=True, help="folder for the report")
  arguments = parser.parse_args()
  parser.check_model(arguments)
  if arguments.maps and arguments.pretrained is None:
    parser.error("--maps are fitted to a pretrained model; give the --pretrained one.")
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  from lattice_jax.bench.harness import describe_machine  # --help need not wait for JAX
  from lattice_jax.bench.local_decode import decode_bound
  from lattice_jax.evaluation.result_tables import write_text
  from lattice_jax.inspect.local.errors import measure_errors
  from lattice_jax.inspect.page import write_page
  from lattice_jax.inspect.windows.calibrate import load_model
  from lattice_jax.inspect.windows.losses import CHOSEN, make_arms, measure_losses
  from lattice_jax.inspect.windows.plots import draw_report
  from lattice_jax.inspect.windows.report import LEAST_SAVED, format_report
  from lattice_jax.memories.local.profile import read_profile
  from lattice_jax.runtime import enable_compilation_cache
  from lattice_jax.sharding import tree_bytes

  enable_compilation_cache()
  start, profile = time.perf_counter(), read_profile(arguments.profile)
  loaded = load_model(pretrained=arguments.pretrained, workdir=arguments.workdir, overrides=arguments.set)
  say(loaded.describe())
  arms, machine = make_arms(loaded, profile), describe_machine()
  errors = errors_context(arguments, loaded) if "errors" in arguments.parts else None
  file = arguments.out / "report.json"
  report = json.loads(file.read_text()) if file.is_file() else {}
  report["windows"] = {CHOSEN: profile.windows} | dict(profile.baselines)
  report["bound"] = decode_bound(
    {arm.name: arm.model for arm in arms}, tree_bytes(loaded.variables), lengths=_BOUND_LENGTHS,
    batches=tuple(sorted({1, arguments.batch})), goal=LEAST_SAVED)
  before = report["facts"]["commands"] if "facts" in report else {}
  commands = before | dict.fromkeys(
    arguments.parts, shlex.join(["python", "scripts/compare_windows.py", *sys.argv[1:]]))
  report["facts"] = {
    "model": loaded.config.name, "profile": str(arguments.profile), "context": arguments.seq_len,
    "commands": commands, "git_commit": machine["commit"],
    "machine": f"{machine['device']}, Python {platform.python_version()}",
    "versions": ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))}
  arguments.out.mkdir(parents=True, exist_ok=True)

  def save() -> None:  # after every part, so that an interrupted run leaves what it has measured
    report["facts"]["seconds"] = time.perf_counter() - start
    write_text(file, json.dumps(report) + "\n")
    text = format_report(report, draw_report(report, arguments.out))
    write_text(arguments.out / "README.md", text)
    write_page(arguments.out / "windows.html", text)

  if "loss" in arguments.parts:
    report["loss"] = measure_losses(
      loaded, arms, split=arguments.split, texts=arguments.texts, seq_len=arguments.seq_len, scored=arguments.scored,
      report=say)
    save()
  if "latency" in arguments.parts:
    report["latency"] = []
    for record in measure_latency(arguments, arms, loaded.variables):
      report["latency"].append(record)
      save()
  if errors is not None:
    report["errors"] = measure_errors(errors)
    save()
  say(f"wrote {file}, README.md and windows.html")


def errors_context(arguments: argparse.Namespace, loaded: LoadedModel) -> Context:
  """What `measure_errors` needs. Raises ValueError for texts or budgets that leave nothing to compare."""
  from lattice_jax.inspect.local.context import Context, Sizes
  from lattice_jax.inspect.local.texts import read_fitted
  from lattice_jax.inspect.windows.calibrate import under

  config = dataclasses.replace(loaded.config, model=under(loaded.config.model, "attention"))
  sizes = Sizes(
    texts=arguments.texts, tuning_texts=1, needle_texts=1, seq_len=arguments.seq_len, budgets=arguments.budgets, seed=0)
  fitted = read_fitted(loaded, arguments.pretrained, arguments.maps)
  context = Context(dataclasses.replace(loaded, config=config), arguments.split, sizes, say, fitted)
  context.check()
  return context


def measure_latency(arguments: argparse.Namespace, arms: list, variables: dict) -> Iterator[dict]:
  """Steps after each length with one row, then with the batch."""
  from lattice_jax.bench.local_decode import measure_decoding

  models = {arm.name: arm.model for arm in arms if arm.name in _TIMED}
  timed = dict.fromkeys([*((length, 1) for length in arguments.lengths), (arguments.batch_length, arguments.batch)])
  for length, batch in timed:
    record = measure_decoding(models, variables, length=length, batch=batch, steps=arguments.steps)
    say(f"{length} tokens, batch {batch}: " + ", ".join(
      f"{arm['name']} {arm['p50_ms']:.1f} ms ({arm['saved_p50']:.0%}, {arm['predicted']:.0%} by bytes)"
      for arm in record["arms"]))
    yield record


def say(line: str) -> None:
  print(line, flush=True)


if __name__ == "__main__":
  run_script(main)
