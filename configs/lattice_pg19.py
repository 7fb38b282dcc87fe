"""Lattice, 24 layers (760M rung), PG-19. The paper's largest models have this size; all other values are ours.

python scripts/prepare_data.py pg19
python train.py --config=configs/lattice_pg19.py --workdir=runs/lattice_pg19

Model and optimizer are the 760M rung of the ladder on which recurrent memories are compared, with 96 slots per
head, so that a head's state is square; the data are a quarter of the tokens of `vq_pg19`.

Cost: not yet measured (33 billion tokens). Expected: not yet measured.

A size for two CPU cores on the shipped novels, and one that only shows that everything runs:

python train.py --config=configs/lattice_pg19.py:sample --workdir=runs/lattice_books --cpu_devices=2
python train.py --config=configs/lattice_pg19.py:smoke --workdir=runs/lattice_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample})


def full_size() -> ml_collections.ConfigDict:
  """Sequences of 8192 tokens in updates of 2048, memory carried between them."""
  config = common.default()
  config.name = "lattice_pg19"
  config.model.update({"vocab": 32_000, "pattern": ("lattice",), "tied_embeddings": True, "logit_scale": 0.036})
  common.use_ladder(config, "760m")
  config.model.lattice.update({"slots": 96, "form": "parallel", "chunk_len": 16, "rounds": 8})
  config.data.update({
    "source": "pg19", "tokenizer": "bpe_lossless:32000", "seq_len": 8192, "update_len": 2048, "batch": 128})
  config.train.update({"steps": 125_000, "log_every": 50, "eval_every": 5000, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 2048})
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """Six novels with a small vocabulary, in rows that carry the memory along each book to its end."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.model.vocab = common.BOOKS_VOCAB
  config.data.update({
    "tokenizer": common.BOOKS_TOKENIZER, "rows": "documents", "seq_len": 2048, "update_len": 512, "batch": 8})
  config.train.steps = 400
