"""Lattice, 12 layers (92M parameters), enwik8. The paper has no such experiment: all values are ours.

python scripts/prepare_data.py enwik8
python train.py --config=configs/lattice_enwik8.py --workdir=runs/lattice_enwik8

Model and optimizer are the 125M rung of the ladder on which recurrent memories are compared, with 64 slots per
head; data and number of tokens are those of `vq_enwik8`. The paper does not state the steps and chunks of its models.

Cost: not yet measured (32.8 billion tokens). Expected: not yet measured.

A size for two CPU cores on the shipped sample of Wikipedia, and one that only shows that everything runs:

python train.py --config=configs/lattice_enwik8.py:sample --workdir=runs/lattice_sample --cpu_devices=2
python train.py --config=configs/lattice_enwik8.py:smoke --workdir=runs/lattice_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample})


def full_size() -> ml_collections.ConfigDict:
  """Sequences of 8192 bytes in updates of 2048, memory carried between them."""
  config = common.default()
  config.name = "lattice_enwik8"
  config.model.update({"vocab": 259, "pattern": ("lattice",), "dropout": 0.2})
  common.use_ladder(config, "125m")
  config.model.lattice.update({"slots": 64, "form": "parallel", "chunk_len": 16, "rounds": 8})
  config.data.update({"source": "enwik8", "seq_len": 8192, "update_len": 2048, "batch": 128})
  config.train.update({"steps": 125_000, "log_every": 50, "eval_every": 2500, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 2048})
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """5.5 MB of text and 1.7M parameters."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.data.update({"seq_len": 2048, "update_len": 512, "batch": 8})
  config.train.steps = 500
