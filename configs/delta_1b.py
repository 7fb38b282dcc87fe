"""Gated DeltaNet, 24 layers (1.3B parameters), PG-19, and the other recurrences; all else as `lattice_1b`.

python scripts/prepare_data.py pg19
python train.py --config=configs/delta_1b.py --workdir=runs/delta_1b

Variants: linear, scalar_decay, gla, deltanet, gated_deltanet (the default), kimi_delta, gated_slots,
ttt_linear.
Heads of 128 are what the paper of Gated DeltaNet finds best (arXiv 2412.06464). Its data are web pages, and its
sequences 4,096 tokens.

Cost: not yet measured (100 billion tokens); compiled for 64 chips of TPU v5p (4×4×4), an update takes 7.8 GB of each
(docs/results/preflight). Expected: not yet measured.

python train.py --config=configs/delta_1b.py:sample --workdir=runs/delta_books --cpu_devices=2
python train.py --config=configs/delta_1b.py:smoke --workdir=runs/delta_1b_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import delta_enwik8, lattice_1b, lattice_pg19


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return delta_enwik8.in_place_of_lattice(
    arg, lattice_1b.full_size, lattice_pg19.use_sample, default="gated_deltanet")
