"""Compiles kernels and a training step for accelerators that this machine lacks, and checks the result.

bash scripts/test.sh --aot                       # makes the environments, then runs the first three:
python scripts/aot.py tpu   --out=docs/results/aot    TPU kernels × arguments × v5e, v5p, v6e
python scripts/aot.py h100  --out=docs/results/aot    Hopper kernels for an H100
python scripts/aot.py step  --out=docs/results/aot    an update of configs/vq_pg19.py on 256 chips of v5e
python scripts/aot.py large --out=docs/results/aot    updates that compile for minutes: 131,072 tokens, 1.3B parameters

Each writes a JSON file and rewrites the table README.md beside it. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.aot.environment import VARIABLES

# Read when JAX and libtpu start; the last one prints registers and spills of every kernel.
os.environ.update(VARIABLES | {"MOSAIC_GPU_DUMP_PTXAS": "1"})

from lattice_jax.commands.arguments import Parser, one_of, path
from lattice_jax.commands.run import run_script

GB = 1e9
# Config, chips, changes to the config, and how many bytes a chip may need at most. A v5e has 16 GB, a v5p 95.
STEPS = {
  "vq_pg19": ("vq_pg19", "v5e:16x16", {"mesh.data": 64, "mesh.model": 4}, 12 * GB),
  "vq_pg19_whole_sequence": (
    "vq_pg19", "v5e:16x16", {"mesh.data": 64, "mesh.model": 4, "data.update_len": 8192}, 4 * GB)}
LARGE_STEPS = {
  "vq_pg19_long": ("vq_pg19:long", "v5e:16x16", {}, 14 * GB),
  "lattice_1b": ("lattice_1b", "v5p:4x4x4", {}, 90 * GB),
  "delta_1b": ("delta_1b", "v5p:4x4x4", {}, 90 * GB)}


def main() -> int:
  parser = Parser(__doc__)
  parser.add_argument("what", type=one_of("tpu", "h100", "step", "large"))
  parser.add_argument("--out", type=path, default=Path("docs/results/aot"))
  parser.add_argument("--only", default="", help="cases whose names contain this")
  arguments = parser.parse_args()
  from lattice_jax.aot import results_page  # --help need not wait for JAX

  records = []
  compiled = {
    "tpu": tpu, "h100": h100, "step": functools.partial(step, STEPS), "large": functools.partial(step, LARGE_STEPS)}
  for record in compiled[arguments.what](arguments.only):
    records.append(record)
    print(results_page.line(record), flush=True)
    results_page.write(arguments.out, arguments.what, records)
  failed = [record for record in records if record["failures"]]
  for record in failed:
    print(f"FAILED {results_page.line(record)}: {'; '.join(record['failures'])}", file=sys.stderr)
  print(f"{arguments.what}: {len(records) - len(failed)} of {len(records)} hold")
  return 1 if failed or not records else 0


def tpu(only: str):
  from lattice_jax.aot import bundles, cases, ops, targets
  from pallas_kernels import specs, specs_delta, specs_lattice

  os.environ["LATTICE_JAX_BACKEND"] = "tpu"
  with bundles.dumping() as dumps:
    for target in targets.TPUS:
      for case in (*specs.TPU_CASES, *specs_lattice.TPU_CASES, *specs_delta.TPU_CASES, *ops.op_cases()):
        if only in case[0]:
          yield cases.compile_case(case, target, dumps)


def h100(only: str):
  from lattice_jax.aot import cases, ops, targets
  from pallas_kernels import specs, specs_delta, specs_lattice

  os.environ["LATTICE_JAX_BACKEND"] = "gpu"
  for case in (*specs.HOPPER_CASES, *specs_lattice.HOPPER_CASES, *specs_delta.HOPPER_CASES, *ops.op_cases()):
    if only in case[0]:
      yield cases.compile_case(case, targets.H100)


def step(steps: dict[str, tuple[str, str, dict[str, int], float]], only: str):
  """Values, heads, MLPs and the vocabulary are split over `model`, rows over `data`, tokens of a row over `seq`."""
  os.environ["LATTICE_JAX_BACKEND"] = "tpu"
  from lattice_jax.aot import targets
  from lattice_jax.aot.train_step import compile_step, step_failures
  from lattice_jax.config_checks import parse_config
  from lattice_jax.sharding import make_mesh

  for name, (experiment, slice_name, changes, most_bytes) in steps.items():
    if only not in name:
      continue
    file, _, variant = experiment.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(variant)
    config.update_from_flattened_dict(changes)
    parsed = parse_config(config)
    record = compile_step(parsed, make_mesh(parsed.mesh, list(targets.devices("tpu", slice_name))))
    yield record | {"case": name, "target": slice_name, "failures": step_failures(record, most_bytes)}


if __name__ == "__main__":
  run_script(main)
