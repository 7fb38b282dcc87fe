"""DeltaNet, 24 layers (350M rung), ImageNet64, and the other recurrences; all else as `lattice_imagenet64`.

python scripts/prepare_data.py imagenet64
python train.py --config=configs/delta_imagenet64.py --workdir=runs/delta_imagenet64

Variants: linear, scalar_decay, gla, deltanet (the default), gated_deltanet, kimi_delta, gated_slots,
ttt_linear.

Cost: not yet measured (98 billion tokens). Expected: not yet measured.

python train.py --config=configs/delta_imagenet64.py:sample --workdir=runs/delta_photos --cpu_devices=2
python train.py --config=configs/delta_imagenet64.py:smoke --workdir=runs/delta_photos_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import delta_enwik8, lattice_imagenet64


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return delta_enwik8.in_place_of_lattice(arg, lattice_imagenet64.full_size, lattice_imagenet64.use_sample)
