"""DeltaNet, 24 layers (760M rung), PG-19, and the other recurrences; all else as `lattice_pg19`.

python scripts/prepare_data.py pg19
python train.py --config=configs/delta_pg19.py --workdir=runs/delta_pg19

Variants: linear, scalar_decay, gla, deltanet (as without one), gated_deltanet, gated_slots, ttt_linear.

Cost: not yet measured (33 billion tokens). Expected: not yet measured.

python train.py --config=configs/delta_pg19.py:sample --workdir=runs/delta_books --cpu_devices=2
python train.py --config=configs/delta_pg19.py:smoke --workdir=runs/delta_books_smoke  (a minute)
"""

from __future__ import annotations

import ml_collections

from configs import common, delta_enwik8, lattice_pg19


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  variants = common.parse_arg(arg, *delta_enwik8.RECURRENCES, "sample", "smoke")
  config = lattice_pg19.full_size()
  if "sample" in variants:
    lattice_pg19.use_sample(config)
  delta_enwik8.use_asked_recurrence(config, variants)
  if "smoke" in variants:
    common.apply_smoke(config)
  return config
