"""Checks every op on this device: python -m lattice_jax.self_check [--tokens=256 --heads=4 --width=64 --out=FOLDER]

Compares the results and gradients of each implementation that can run here with those of the definition, and times
both. The exit status is 1 if an error exceeds its limit. A CPU interprets kernels, which is slow and says nothing about
their speed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

import jax

from lattice_jax.bench.harness import describe_machine
from lattice_jax.commands.arguments import Parser, of, path, positive, some_of
from lattice_jax.commands.run import print_now, run_script
from lattice_jax.dispatch import OVERRIDE
from lattice_jax.domains import Names, did_you_mean
from lattice_jax.memories.cases import Sizes
from lattice_jax.self_check import results
from lattice_jax.self_check.check import DTYPES, Row, check, make_cases


def main(arguments: list[str]) -> int:
  """Returns the exit status."""
  parsed = parse(arguments)
  ops = {case.op for case in make_cases(Sizes())}
  for op in parsed.ops:
    if op not in ops:
      raise ValueError(f"--ops={op} is not one of {', '.join(sorted(ops))}.{did_you_mean(op, ops)}")
  os.environ.pop(OVERRIDE, None)  # it would replace every implementation by one
  impls = ("xla", "interpret" if jax.default_backend() == "cpu" else "pallas")
  machine = describe_machine()
  print_now(f"{machine['device']}, jax {machine['jax']}: {', '.join(impls)} against the definition\n")
  print_now(results.header())
  rows: list[Row] = []
  for dtype in parsed.dtypes:
    sizes = Sizes(parsed.tokens, parsed.heads, parsed.width, parsed.width, dtype)
    for case in make_cases(sizes):
      if not parsed.ops or case.op in parsed.ops:
        for row in check(case, impls, dtype):
          rows.append(row)
          print_now(results.line(row))
  print_now("\n" + results.summary(rows))
  if parsed.out:
    results.write(parsed.out, shlex.join(["python", "-m", "lattice_jax.self_check", *arguments]), machine, sizes, rows)
    print_now(f"wrote {parsed.out / 'README.md'}")
  return results.status(rows)


def parse(arguments: list[str]) -> argparse.Namespace:
  parser = Parser(__doc__, prog="python -m lattice_jax.self_check")
  parser.add_argument("--tokens", type=positive, default=Sizes.tokens)
  parser.add_argument("--heads", type=positive, default=Sizes.heads)
  parser.add_argument("--width", type=positive, default=Sizes.width,
                      help="of keys and values, and slots or codes of a head")
  parser.add_argument("--ops", type=of(Names()), default=(), help="only these, separated by commas")
  parser.add_argument("--dtypes", type=some_of(*DTYPES), default=",".join(DTYPES), help="of activations")
  parser.add_argument("--out", type=path, help="folder for a README.md with the table")
  return parser.parse_args(arguments)


if __name__ == "__main__":
  run_script(lambda: main(sys.argv[1:]))
