"""The softmax twin of `vq_pg19`: the same values, with softmax attention and rotary positions as the memory.

python scripts/prepare_data.py pg19
python train.py --config=configs/full_pg19.py --workdir=runs/full_pg19

Cost: not yet measured. Expected: not yet measured; the paper has no such row.

python train.py --config=configs/full_pg19.py:sample --workdir=runs/full_books  # not yet measured
python train.py --config=configs/full_pg19.py:smoke --workdir=runs/full_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, vq_pg19


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = common.make_softmax_twin(vq_pg19.get_config(arg))
  config.name = config.name.replace("vq", "full")
  return config
