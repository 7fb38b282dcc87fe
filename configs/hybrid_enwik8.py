"""Lattice and sliding-window attention in turn, 12 layers (92M parameters), enwik8; all else as `lattice_enwik8`.

python scripts/prepare_data.py enwik8
python train.py --config=configs/hybrid_enwik8.py --workdir=runs/hybrid_enwik8

A window of 512 bytes sees what is near exactly; the slots of the layers between keep what is far. The paper has no
hybrid; windows in every second layer are how the papers on DeltaNet build theirs.

Cost: not yet measured (32.8 billion tokens). Expected: not yet measured.

python train.py --config=configs/hybrid_enwik8.py:sample --workdir=runs/hybrid_sample --cpu_devices=2
python train.py --config=configs/hybrid_enwik8.py:smoke --workdir=runs/hybrid_smoke  (a minute)
"""

from __future__ import annotations

import ml_collections

from configs import common, lattice_enwik8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  variants = common.parse_arg(arg, "sample", "smoke")
  config = lattice_enwik8.full_size()
  config.name = "hybrid_enwik8"
  use_windows(config, 512)
  if "sample" in variants:
    lattice_enwik8.use_sample(config)
  if "smoke" in variants:
    common.apply_smoke(config)
  return config


def use_windows(config: ml_collections.ConfigDict, window: int) -> None:
  """Windowed attention with rotary positions in every second layer."""
  config.model.pattern = ("lattice", "window")
  config.model.attention.window = window
