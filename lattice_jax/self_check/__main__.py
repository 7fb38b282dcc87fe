"""Checks every op on this device: python -m lattice_jax.self_check [--tokens=256 --heads=4 --width=64]

Each implementation that can run here against the definition, results and gradients, with the time of both. The exit
status is 1 where one is further off than its limit. On a CPU kernels are interpreted, which is slow and says nothing of
their speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

import jax

from lattice_jax.dispatch import OVERRIDE
from lattice_jax.self_check.cases import Sizes, make_cases
from lattice_jax.self_check.check import LIMITS, Row, check

_COLUMNS = "{:12} {:20} {:9} {:9} {:>9} {:>9} {:>10} {:>10}  {}"


def main(arguments: list[str]) -> int:
  """The number of misses, at most one."""
  parser = argparse.ArgumentParser(
    prog="python -m lattice_jax.self_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokens", type=int, default=Sizes.tokens)
  parser.add_argument("--heads", type=int, default=Sizes.heads)
  parser.add_argument("--width", type=int, default=Sizes.width, help="of keys and values, and slots or codes of a head")
  parser.add_argument("--ops", default="", help="only these, separated by commas")
  parser.add_argument("--dtypes", default="float32,bfloat16", help="of activations")
  parsed = parser.parse_args(arguments)
  os.environ.pop(OVERRIDE, None)  # it would replace every implementation by one
  on_cpu = jax.default_backend() == "cpu"
  impls = ("xla", "interpret") if on_cpu else ("xla", "pallas")
  write(f"jax {jax.__version__}, {jax.devices()[0].device_kind}: {', '.join(impls)} against the definition\n")
  write(_COLUMNS.format("op", "form", "impl", "dtype", "result", "gradient", "ms", "definition", ""))
  rows: list[Row] = []
  for dtype in parsed.dtypes.split(","):
    sizes = Sizes(parsed.tokens, parsed.heads, parsed.width, parsed.width, dtype)
    for case in make_cases(sizes):
      if not parsed.ops or case.op in parsed.ops.split(","):
        for row in check(case, impls, dtype):
          rows.append(row)
          write(line(row))
  return report(rows)


def line(row: Row) -> str:
  """One row of the table."""
  head = row.op, row.form, row.impl, row.dtype
  if row.reason:
    return _COLUMNS.format(*head, "", "", "", "", row.reason.partition("cannot run: ")[2] or row.reason)
  return _COLUMNS.format(
    *head, f"{row.result_error:.1e}", f"{row.gradient_error:.1e}", f"{row.milliseconds:,.2f}",
    f"{row.reference_milliseconds:,.2f}", "ok" if row.holds else "MISS")


def report(rows: list[Row]) -> int:
  """Says how many missed; the exit status."""
  ran, missed = [row for row in rows if not row.reason], [row for row in rows if not row.holds]
  limits = ", ".join(f"{name} {dtype} {limit:.0e}" for (name, dtype), limit in LIMITS.items())
  write(f"\n{len(ran) - len(missed)} of {len(ran)} within the limits ({limits})")
  if not ran:
    write("nothing was checked; --ops and --dtypes leave no case")
  for row in missed:
    write(f"MISS: op {row.op}, {row.form}, impl {row.impl}, {row.dtype}: use model.impl=reference or xla for it, and "
          f"report {dataclasses.asdict(row)}")
  return 1 if missed or not ran else 0


def write(text: str) -> None:
  sys.stdout.write(text + "\n")
  sys.stdout.flush()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
