"""Lattice, 24 layers of width 2048 (1.3B parameters), 100 billion tokens of PG-19, for 64 chips of TPU v5p (4×4×4).

python scripts/prepare_data.py pg19
python train.py --config=configs/lattice_1b.py --workdir=runs/lattice_1b

Size, tokens and optimizer are those of the papers on the delta rule (Gated DeltaNet, arXiv 2412.06464): half a million
tokens an update, AdamW with a peak of 4e-4, a warm-up of a billion tokens. Heads have 128 slots of 128 numbers; on TPUs
a kernel goes through them token by token. PG-19 is read again and again; your own text is
`--config.data.source=text:PATH`.

Cost: not yet measured (100 billion tokens); compiled for the 64 chips, an update takes 18.4 GB of each
(docs/results/preflight). Expected: not yet measured.

A size for two CPU cores on the shipped novels, and one that only shows that everything runs:

python train.py --config=configs/lattice_1b.py:sample --workdir=runs/lattice_books --cpu_devices=2
python train.py --config=configs/lattice_1b.py:smoke --workdir=runs/lattice_1b_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common, lattice_pg19


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": lattice_pg19.use_sample})


def full_size() -> ml_collections.ConfigDict:
  """Sequences of 8192 tokens in updates of 4096, memory carried between them; parameters over all chips (FSDP)."""
  config = common.default()
  config.name = "lattice_1b"
  config.model.update({"vocab": 32_000, "pattern": ("lattice",), "tied_embeddings": True, "logit_scale": 0.031})
  common.use_ladder(config, "1.3b")
  config.model.lattice.update({"slots": 128, "form": "scan"})
  config.data.update({
    "source": "pg19", "tokenizer": "bpe_lossless:32000", "seq_len": 8192, "update_len": 4096, "batch": 128})
  config.train.update({"steps": 190_000, "log_every": 50, "eval_every": 5000, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 4096})
  return config
