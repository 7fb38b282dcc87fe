"""Local attention, 12 layers (92M parameters), enwik8: half of the heads see the last 64 bytes, two of them 1,024.

python scripts/prepare_data.py enwik8
python train.py --config=configs/local_enwik8.py --workdir=runs/local_enwik8

Cost: not yet measured. Expected: not yet measured; no paper has such a row.

python train.py --config=configs/local_enwik8.py:sample --workdir=runs/local_sample
python train.py --config=configs/local_enwik8.py:smoke --workdir=runs/local_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, lattice_enwik8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample})


def full_size() -> ml_collections.ConfigDict:
  """The model and the data of `lattice_enwik8` in sequences of one update, for nothing is carried between updates."""
  config = lattice_enwik8.full_size()
  config.name = "local_enwik8"
  config.model.pattern = ("local",)
  config.model.local.windows = (64,) * 6 + (256,) * 4 + (1024,) * 2
  config.data.seq_len = config.data.update_len
  config.eval.chunk_len = 0
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """A million bytes of enwik8 in windows of 512; two of three heads see the last 32."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.model.local.update({"rungs": (32, 128), "windows": (32, 32, 128)})
  config.data.update({"seq_len": 512, "update_len": 512, "batch": 8})
  config.train.steps = 400
  config.eval.protocol = "cold"
