"""Lattice and sliding-window attention in turn, 24 layers (760M rung), PG-19; all else as `lattice_pg19`.

python scripts/prepare_data.py pg19
python train.py --config=configs/hybrid_pg19.py --workdir=runs/hybrid_pg19

Windows of 2048 tokens, as in the hybrids of Gated DeltaNet.

Cost: not yet measured (33 billion tokens). Expected: not yet measured.

python train.py --config=configs/hybrid_pg19.py:sample --workdir=runs/hybrid_books --cpu_devices=2
python train.py --config=configs/hybrid_pg19.py:smoke --workdir=runs/hybrid_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, lattice_pg19


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": lattice_pg19.use_sample})


def full_size() -> ml_collections.ConfigDict:
  """Windows of 2048 tokens in every second layer."""
  config = lattice_pg19.full_size()
  config.name = "hybrid_pg19"
  config.model.pattern = ("lattice", "window")
  config.model.attention.window = 2048
  return config
