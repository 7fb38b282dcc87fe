"""Transformer-VQ, 48 gated attention units (190M parameters), enwik8, with the values of the paper.

What the paper does not state is as in its first published code; docs/transformer_vq.md says where.

python scripts/prepare_data.py enwik8
python train.py --config=configs/vq_enwik8.py --workdir=runs/vq_enwik8

Cost: not yet measured (32.8 billion tokens). Expected: the paper reports 0.99 bits per byte on test; not yet measured.

A size for two CPU cores on the shipped sample of Wikipedia, and one that only shows that everything runs:

python train.py --config=configs/vq_enwik8.py:sample --workdir=runs/vq_sample --cpu_devices=2
python train.py --config=configs/vq_enwik8.py:smoke --workdir=runs/vq_smoke  # a minute

The sample size takes 9 minutes on two cores of an AMD EPYC; with `--config.train.steps=3200` it takes 40 to 60 and
ends at 1.93 bits per byte on test, cold or carried.
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, paper, {"sample": use_sample})


def paper() -> ml_collections.ConfigDict:
  """Sequences of 8192 bytes in updates of 2048, memory carried between them."""
  config = common.default()
  config.name = "vq_enwik8"
  config.model.update({
    "vocab": 259, "dim": 768, "layers": 48, "pattern": ("vq",), "block": "gau", "final_norm": False,
    "dropout": 0.5, "layer_drop": 0.3, "dtype": "bfloat16", "remat": "full"})
  config.model.vq.update({"key_dim": 128, "value_dim": 1536, "codes": 512, "block_len": 512, "sinusoid_dropout": 0.2})
  common.use_published_details(config)
  config.data.update({"source": "enwik8", "seq_len": 8192, "update_len": 2048, "batch": 128})
  config.optimizer.update({
    "learning_rate": 4e-4, "warmup_steps": 10_000, "schedule": "cosine", "final_fraction": 0.1, "b1": 0.9, "b2": 0.98,
    "eps": 1e-9, "weight_decay": 2e-4, "decay": "independent", "clip_norm": 0.1})
  config.train.update({"steps": 125_000, "log_every": 50, "eval_every": 2500, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 2048})
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """5.5 MB of text and 1.7M parameters."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.data.update({"seq_len": 2048, "update_len": 512, "batch": 8})
  config.train.steps = 560
