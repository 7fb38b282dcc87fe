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

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, one_of, path, positive, positive_number, positives, some_of
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.runtime import enable_compilation_cache


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("op", type=one_of("delta", "lattice", "recurrence", "vq"))
  parser.add_argument("--head", default="", help="widths and heads of the layer; by default the op's first, and an "
                      "unknown one is answered with the op's")
  parser.add_argument("--lengths", type=positives, default="1024,2048,4096,8192",
                      help="tokens of a row, separated by commas")
  parser.add_argument("--modes", type=some_of("fwd", "fwd+bwd", "decode"), default="fwd,fwd+bwd",
                      help="some of fwd, fwd+bwd, decode (vq: one token after T)")
  parser.add_argument("--cases", default="", help="run only cases whose names contain one of these words")
  parser.add_argument("--batch", type=positive, default=1)
  parser.add_argument("--rounds", type=positive, default=7)
  parser.add_argument("--scaling", action="store_true", help="measure all lengths in turn, and only their growth")
  parser.add_argument("--max_gb", type=positive_number, default=16.0, help="cases that need more memory are not run")
  parser.add_argument("--out", type=path, required=True, help="folder of bench.jsonl, tables and plots")
  arguments = parser.parse_args()
  from lattice_jax.bench.cases import OpBench  # --help need not wait for JAX
  from lattice_jax.bench.harness import describe_machine

  bench = OpBench(
    arguments.op, arguments.head, batch=arguments.batch, words=tuple(filter(None, arguments.cases.split(","))),
    rounds=arguments.rounds, max_gb=arguments.max_gb, out=arguments.out, say=print_now)
  bench.check_modes(arguments.modes)
  enable_compilation_cache()
  machine = describe_machine()
  print_now(", ".join(f"{name} {value}" for name, value in machine.items()))
  for mode in arguments.modes:
    (bench.print_scaling if arguments.scaling else bench.compare)(arguments.lengths, mode, machine)


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
