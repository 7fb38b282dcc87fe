"""Sweep files for tests."""

from __future__ import annotations

import yaml

from lattice_jax.sweep.runner import Runner
from lattice_jax.sweep.search import make_search
from lattice_jax.sweep.sweep_file import read_sweep
from lattice_jax.sweep.table import make_table
from tests.sweep import fake

METRIC = "eval_validation_cold/bits_per_byte"
GRID = {
  "program": str(fake.PATH), "method": "grid", "metric": {"name": METRIC, "goal": "minimize"},
  "parameters": {"size": {"values": [1, 2, 4]}, "seed": {"values": [0, 1]}}}


def write(folder, **changes):
  """A file of GRID with changes; None leaves a key out."""
  raw = {name: value for name, value in (GRID | changes).items() if value is not None}
  path = folder / "sizes.yaml"
  path.write_text(yaml.safe_dump(raw, sort_keys=False))
  return path


def read(folder, **changes):
  return read_sweep(write(folder, **changes))


def run(sweep, workdir, *, jobs=1, seed=0):
  """(number of failed trials, lines that were said)."""
  said = []
  runner = Runner(sweep, make_search(sweep, workdir, seed), workdir, jobs=jobs, say=said.append)
  assert runner.run() == 0
  return runner.failed, said


def table(sweep, workdir, *, beyond=(), against=""):
  total = make_search(sweep, workdir, 0).total
  return make_table(sweep, workdir, total=total, command="the command", beyond=beyond, against=against)
