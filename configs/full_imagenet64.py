"""The softmax twin of `vq_imagenet64`: the same values, with softmax attention and rotary positions as the memory.

python scripts/prepare_data.py imagenet64
python train.py --config=configs/full_imagenet64.py --workdir=runs/full_imagenet64

Cost: not yet measured. Expected: not yet measured; the paper has no such row.

python train.py --config=configs/full_imagenet64.py:sample --workdir=runs/full_photos  # not yet measured
python train.py --config=configs/full_imagenet64.py:smoke --workdir=runs/full_photos_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, vq_imagenet64


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = common.make_softmax_twin(vq_imagenet64.get_config(arg))
  config.name = config.name.replace("vq", "full")
  return config
