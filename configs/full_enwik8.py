"""The softmax twin of `vq_enwik8`: the same values, with softmax attention and rotary positions as the memory.

python scripts/prepare_data.py enwik8
python train.py --config=configs/full_enwik8.py --workdir=runs/full_enwik8

Cost: not yet measured (32.8 billion tokens). Expected: not yet measured; the paper has no such row.

python train.py --config=configs/full_enwik8.py:sample --workdir=runs/full_sample  # not yet measured
python train.py --config=configs/full_enwik8.py:smoke --workdir=runs/full_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, vq_enwik8


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = common.make_softmax_twin(vq_enwik8.get_config(arg))
  config.name = config.name.replace("vq", "full")
  return config
