"""Counts the rounds that a chunk of a nonlinear recurrence needs, by method, and what they cost in multiply-adds.

python scripts/bench.py rounds --out=docs/results/bench_parallel_recurrence

A method is done once what is read of the chunk's states is within 1e-6 of the scan in float64; the scan itself in
float32 is about 2e-7 away. Writes rounds.md and rounds.jsonl. Nothing is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lattice_jax.commands.arguments import Parser, path, positives
from lattice_jax.commands.run import run_script
from lattice_jax.files import append_jsonl, replace_file
from lattice_jax.runtime import enable_compilation_cache


def main() -> None:
  parser = Parser(__doc__)
  parser.add_argument("op", help="rounds")
  parser.add_argument("--chunks", type=positives, default="16,64,256", help="tokens of a chunk, separated by commas")
  parser.add_argument("--out", type=path, required=True, help="folder of rounds.md and rounds.jsonl")
  arguments = parser.parse_args()
  from lattice_jax.bench import rounds  # --help need not wait for JAX
  from lattice_jax.bench.harness import describe_machine

  if max(arguments.chunks) > rounds.LONGEST:
    raise ValueError(f"--chunks={max(arguments.chunks)} must be at most {rounds.LONGEST}.")
  enable_compilation_cache()
  counted = []
  for name, problem in rounds.problems().items():
    for chunk in (chunk for chunk in arguments.chunks if chunk <= problem.longest):
      found = rounds.count_rounds(problem, chunk)
      records = [record | {"problem": name, "chunk": chunk} for record in found]
      append_jsonl(arguments.out / "rounds.jsonl", [describe_machine() | record for record in records])
      counted += records
      print(f"{name}, {chunk} tokens: " + ", ".join(f"{r['method']} {r['rounds']}" for r in records), flush=True)
  replace_file(arguments.out / "rounds.md", rounds.format_rounds(counted))


if __name__ == "__main__":
  run_script(main)
