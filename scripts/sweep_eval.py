"""Evaluates a trained run or a pretrained model under one setting: a trial of a sweep that does not train.

python scripts/sweep_eval.py --run=runs/vq_books --set=model.vq.cache=False --workdir=runs/vq_books_nocache
python scripts/sweep_eval.py --pretrained=smollm2 --cache=lagkv:lag=64,ratio=0.25 --chunk_len=128 --workdir=runs/lagkv

configs/sweeps/cache_budgets.yaml and local_windows.yaml name it as their program, for `scripts/sweep.py` and
`wandb sweep` alike. It leaves in --workdir what a training leaves that a sweep reads: run.json, and in metrics.jsonl
the evaluation and its speed. --workdir may hold {run_id}, which stands for WANDB_RUN_ID.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, count, of, one_of, path, place, positive, some_of
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.commands.run_id import fill_run_id
from lattice_jax.domains import Text


def main() -> None:
  arguments = parse_arguments()
  workdir = Path(fill_run_id(arguments.workdir))
  from lattice_jax.evaluation.result_tables import format_result  # --help need not wait for JAX
  from lattice_jax.runtime import enable_compilation_cache

  enable_compilation_cache()
  model = load(arguments)
  print_now(model.describe())
  given = {name: getattr(arguments, name) for name in ("seq_len", "chunk_len", "batch", "max_batches")}
  model = model.with_eval(
    split=arguments.split, protocol=arguments.protocol,
    **{name: value for name, value in given.items() if value is not None})
  (result,) = model.evaluate()
  record(model, result, workdir, arguments.writers)
  print_now(f"\n{format_result(result)}\n\nwrote {workdir}/run.json and metrics.jsonl")


def parse_arguments() -> argparse.Namespace:
  parser = Parser(__doc__)
  parser.add_argument("--run", type=path, help="workdir of a trained run")
  parser.add_argument("--pretrained", type=place, help="smollm2, a folder of safetensors or a .gguf file")
  parser.add_argument("--set", type=of(Text()), action="append", default=[],
                      help="a change of the config, as in model.vq.cache=False; several with blanks between")
  parser.add_argument("--cache", type=of(Text()), help="what attention keeps, as in lagkv:lag=128,ratio=0.25")
  parser.add_argument("--split", type=one_of("train", "validation", "test"), default="test", help="what to read")
  parser.add_argument("--protocol", type=one_of("cold", "carried"), default="cold",
                      help="windows from an empty memory, or whole documents with the memory running on")
  parser.add_argument("--seq_len", type=positive, help="tokens of a window; by default the run's own")
  parser.add_argument("--chunk_len", type=count, help="tokens of a call; 0 = the window")
  parser.add_argument("--batch", type=positive, help="rows of a call")
  parser.add_argument("--max_batches", type=count, help="calls in all; 0 = the whole split")
  parser.add_argument("--writers", type=some_of("jsonl", "tensorboard", "wandb"), default=("jsonl",),
                      help="where the result goes, commas between")
  parser.add_argument("--workdir", type=place, required=True, help="folder of the result; may hold {run_id}")
  arguments = parser.parse_args()
  if (arguments.run is None) == (arguments.pretrained is None):
    parser.error("give either the workdir of a trained --run or a --pretrained model, such as smollm2.")
  if "jsonl" not in arguments.writers:
    parser.error(f"--writers={','.join(arguments.writers)} leaves out jsonl, from which a sweep reads the result.")
  return arguments


def load(arguments: argparse.Namespace):  # its type needs JAX
  from lattice_jax.evaluation.caches import cache_overrides
  from lattice_jax.evaluation.loaded_model import load_pretrained_model, load_run

  overrides = [change for text in arguments.set for change in text.split()]
  if arguments.cache is not None:
    overrides += cache_overrides(arguments.cache)
  if arguments.run is not None:
    return load_run(arguments.run, step=None, overrides=overrides)
  return load_pretrained_model(arguments.pretrained, workdir=None, dtype="float32", overrides=overrides)


def record(model, result, workdir: Path, names: tuple[str, ...]) -> None:
  """Writes run.json and metrics.jsonl; an older result of the folder is replaced."""
  from lattice_jax.models.parameters import count_parameters
  from lattice_jax.training.reporter import evaluation_record
  from lattice_jax.training.start import describe_run
  from lattice_jax.training.workdir import locked, write_json
  from lattice_jax.writers import RunInfo, Writers

  step = model.step or 0
  source, _ = model.read_split(result.split)
  description = describe_run(model.config, source, count_parameters(model.params), model.mesh)
  with locked(workdir):
    write_json(workdir / "run.json", description)
    (workdir / "metrics.jsonl").unlink(missing_ok=True)
    writers = Writers(names, RunInfo(workdir, 0, description, source.unit))
    writers.update({"step": step, "tokens_per_second": result.tokens_per_second})
    writers.evaluation(evaluation_record(step, result))
    writers.flush()
    writers.close()


if __name__ == "__main__":
  run_script(main)
