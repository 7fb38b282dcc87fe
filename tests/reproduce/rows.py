"""Small measurements that really run: short Python programs, and a training of three updates."""

from __future__ import annotations

import json

from lattice_jax.reproduce.readers import Curve, Stored
from lattice_jax.reproduce.rows import Measurement, Paper, Program, Published, Row, Sample, Train

WRITE = "import json, pathlib, sys; pathlib.Path(sys.argv[1], 'out.json').write_text(json.dumps({'x': %s}))"
CURVE = "eval_validation_cold/bits_per_byte"
TRAIN = Train("configs/ablation_lattice.py:smoke", ("train.steps=3", "eval.max_batches=1"))


def command(name, value, *, needs=(), text=WRITE):
  words = ("-c", text % json.dumps(value) if "%" in text else text, "{out}")
  return Measurement(name, Program(words), "nothing", 0.1, needs)


def row(name, measurement, reader=None):
  published = Published("1.0", "bits", "paper")
  return Row(name, "a row", published, Paper(TRAIN, ("--split=test",), "bits_per_byte"),
             Sample(measurement, reader or Stored("out.json", ("x",)), "bits"))


def training_row(name, measurement):
  return row(name, measurement, Curve(CURVE))
