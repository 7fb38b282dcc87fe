"""Anchor attention, 12 layers (92M parameters), enwik8: a line collapses into the key and value of its line end.

python scripts/prepare_data.py enwik8
python train.py --config=configs/anchor_enwik8.py --workdir=runs/anchor_enwik8

Cost: not yet measured. Expected: not yet measured; the paper has no such row.

python train.py --config=configs/anchor_enwik8.py:sample --workdir=runs/anchor_sample
python train.py --config=configs/anchor_enwik8.py:smoke --workdir=runs/anchor_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, lattice_enwik8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample})


def full_size() -> ml_collections.ConfigDict:
  """The model and the data of `lattice_enwik8` in sequences of one update, for nothing is carried between updates."""
  config = lattice_enwik8.full_size()
  config.name = "anchor_enwik8"
  config.model.pattern = ("anchor",)
  config.data.seq_len = config.data.update_len
  config.model.anchor.max_segment = 512
  config.data.anchors.rule = "line"
  config.eval.chunk_len = 0
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """A million bytes of enwik8 in windows of 512."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.data.update({"seq_len": 512, "update_len": 512, "batch": 8})
  config.model.anchor.max_segment = 256
  config.train.steps = 400
  config.eval.protocol = "cold"
