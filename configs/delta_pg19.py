"""DeltaNet, 24 layers (760M rung), PG-19, and the other recurrences; all else as `lattice_pg19`.

python scripts/prepare_data.py pg19
python train.py --config=configs/delta_pg19.py --workdir=runs/delta_pg19

Variants: linear, scalar_decay, gla, deltanet (the default), gated_deltanet, kimi_delta, gated_slots,
ttt_linear.

Cost: not yet measured (33 billion tokens). Expected: not yet measured.

python train.py --config=configs/delta_pg19.py:sample --workdir=runs/delta_books --cpu_devices=2
python train.py --config=configs/delta_pg19.py:smoke --workdir=runs/delta_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import delta_enwik8, lattice_pg19


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return delta_enwik8.in_place_of_lattice(arg, lattice_pg19.full_size, lattice_pg19.use_sample)
