"""Lattice and sliding-window attention in turn, 12 layers (92M parameters), enwik8; all else as `lattice_enwik8`.

python scripts/prepare_data.py enwik8
python train.py --config=configs/hybrid_enwik8.py --workdir=runs/hybrid_enwik8

A window of 512 bytes reads the near past exactly, and the slots of the other layers keep the far past. The paper has
no hybrid; the papers on DeltaNet put windows into every second layer of theirs.

Cost: not yet measured (32.8 billion tokens). Expected: not yet measured.

python train.py --config=configs/hybrid_enwik8.py:sample --workdir=runs/hybrid_sample --cpu_devices=2
python train.py --config=configs/hybrid_enwik8.py:smoke --workdir=runs/hybrid_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, lattice_enwik8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": lattice_enwik8.use_sample})


def full_size() -> ml_collections.ConfigDict:
  """Windows of 512 bytes in every second layer."""
  config = lattice_enwik8.full_size()
  config.name = "hybrid_enwik8"
  config.model.pattern = ("lattice", "window")
  config.model.attention.window = 512
  return config
