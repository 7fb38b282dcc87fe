"""Times an op's implementations and its baselines in turn, and writes JSON lines, a table and a plot.

python scripts/bench.py vq --head=shga --lengths=1024,2048,4096,8192 --out=docs/results/bench_vq_cpu
python scripts/bench.py lattice --lengths=2048,4096,8192 --out=docs/results/bench_lattice_cpu
python scripts/bench.py recurrence --head=gru64 --lengths=512,8192,131072 --out=docs/results/bench_parallel_recurrence
python scripts/bench.py delta --head=kimi_delta --lengths=8192 --out=docs/results/bench_delta_cpu
JAX_NUM_CPU_DEVICES=2 python scripts/bench.py lattice --lengths=8192 --cases=scan,blockwise --out=runs/bench

Compilation is timed separately. Every ratio is a median over rounds in which all cases ran one after another. A second
run with the same --out adds lengths to the same files; the plot shows what the same machine and commit measured. With
--scaling all lengths take turns too, and the table shows how time and memory grow from one length to the next:

python scripts/bench.py vq --scaling --lengths=4096,8192,16384,32768 --cases=vq --out=docs/results/bench_vq_cpu

`python scripts/bench.py peers --help` is about whole pretrained models beside other programs (scripts/bench_peers.py),
`python scripts/bench.py streaming --help` about weights that pass through a budget (scripts/bench_streaming.py),
`python scripts/bench.py rounds --help` about the rounds that nonlinear recurrences need (scripts/bench_rounds.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.bench import delta, lattice, recurrence, vq
from lattice_jax.bench.harness import GIGA, Measured, describe_machine, measure
from lattice_jax.bench.records import format_scaling, format_table, plot_records, records_like, write_records
from lattice_jax.commands.arguments import Parser, one_of, path, positive, positive_number, positives, some_of
from lattice_jax.commands.run import run_script
from lattice_jax.files import read_jsonl
from lattice_jax.runtime import enable_compilation_cache

OPS = {"vq": vq, "lattice": lattice, "delta": delta, "recurrence": recurrence}


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("op", type=one_of(*sorted(OPS)))
  heads = "; ".join(f"of {name}: {', '.join(op.SHAPES)}" for name, op in OPS.items())
  parser.add_argument("--head", default="", help=f"widths and heads of the layer, the op's first by default; {heads}")
  parser.add_argument("--lengths", type=positives, default="1024,2048,4096,8192",
                      help="tokens of a row, separated by commas")
  parser.add_argument("--modes", type=some_of(*vq.MODES), default="fwd,fwd+bwd",
                      help=f"some of {', '.join(vq.MODES)} (vq: one token after T)")
  parser.add_argument("--cases", default="", help="run only cases whose names contain one of these words")
  parser.add_argument("--batch", type=positive, default=1)
  parser.add_argument("--rounds", type=positive, default=7)
  parser.add_argument("--scaling", action="store_true", help="measure all lengths in turn, and only their growth")
  parser.add_argument("--max_gb", type=positive_number, default=16.0, help="cases that need more memory are not run")
  parser.add_argument("--out", type=path, required=True, help="folder of bench.jsonl, tables and plots")
  arguments = parser.parse_args()
  shapes = OPS[arguments.op].SHAPES
  arguments.head = arguments.head or next(iter(shapes))
  if arguments.head not in shapes:
    raise ValueError(f"--head={arguments.head} is none of {arguments.op}; use one of {', '.join(shapes)}.")
  unknown = set(arguments.modes) - set(OPS[arguments.op].MODES)
  if unknown:
    raise ValueError(f"--modes={','.join(unknown)} is none of {arguments.op}'s: {', '.join(OPS[arguments.op].MODES)}.")
  enable_compilation_cache()
  machine = describe_machine()
  print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
  for mode in arguments.modes:
    (print_scaling if arguments.scaling else compare)(arguments, mode, machine)


def compare(arguments: argparse.Namespace, mode: str, machine: dict[str, Any]) -> None:
  """Measures length by length: a table for each, one plot and the JSON lines of all."""
  for length in arguments.lengths:
    results = run(arguments, [length], mode)
    write_records(arguments.out / "bench.jsonl", results, machine)
    text = format_table(results, OPS[arguments.op].BASELINES)
    print(f"\n{arguments.head}, T = {length:,}, {mode}\n\n{text}", flush=True)
  records = read_jsonl(arguments.out / "bench.jsonl")
  records = records_like(records, records[-1])
  out = arguments.out / f"{arguments.head}_{mode.replace('+', '_')}.png"
  plot_records(records, f"{arguments.head}, {mode}", out)
  print(f"wrote {out}")
  if hasattr(OPS[arguments.op], "write_summary"):
    OPS[arguments.op].write_summary(arguments.out)


def print_scaling(arguments: argparse.Namespace, mode: str, machine: dict[str, Any]) -> None:
  """Measures all lengths as one group; the JSON lines go to a file of their own."""
  results = run(arguments, arguments.lengths, mode)
  write_records(arguments.out / "scaling.jsonl", results, machine)
  print(f"\n{arguments.head}, {mode}\n\n{format_scaling(results)}", flush=True)


def run(arguments: argparse.Namespace, lengths: Sequence[int], mode: str) -> list[Measured]:
  words = [word for word in arguments.cases.split(",") if word]
  cases = [
    case for length in lengths for case in OPS[arguments.op].cases(arguments.head, length, mode, arguments.batch)
    if not words or any(word in case.name for word in words)]
  if not cases:
    known = [case.name for case in OPS[arguments.op].cases(arguments.head, lengths[0], mode, arguments.batch)]
    raise ValueError(f"--cases={arguments.cases} is in no name; {mode} has {', '.join(known)}.")
  return measure(cases, rounds=arguments.rounds, max_bytes=int(arguments.max_gb * GIGA))


if __name__ == "__main__":
  if sys.argv[1:2] == ["peers"]:
    import bench_peers

    main = bench_peers.main
  if sys.argv[1:2] == ["streaming"]:
    import bench_streaming

    main = bench_streaming.main
  if sys.argv[1:2] == ["rounds"]:
    import bench_rounds

    main = bench_rounds.main
  run_script(main)
