"""Local attention, 24 layers (760M rung), PG-19: two of sixteen heads see everything, half of them 128 tokens.

python scripts/prepare_data.py pg19
python train.py --config=configs/local_pg19.py --workdir=runs/local_pg19

`:mean` adds what has left the windows, as its mean key and value. `:causal` is the twin with softmax attention, all
else equal.

Cost: not yet measured (33 billion tokens). Expected: not yet measured.

A size for two CPU cores on the shipped novels, and one that only shows that everything runs:

python train.py --config=configs/local_pg19.py:sample --workdir=runs/local_books
python train.py --config=configs/local_pg19.py:smoke --workdir=runs/local_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import anchor_pg19, common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample, "mean": with_mean, "causal": without_windows})


def full_size() -> ml_collections.ConfigDict:
  """The model and the data of `anchor_pg19`: sequences of 2048 tokens."""
  config = anchor_pg19.full_size()
  config.name = "local_pg19"
  config.model.pattern = ("local",)
  config.model.local.windows = (128,) * 8 + (512,) * 6 + (0,) * 2
  config.data.anchors.rule = "none"
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """Six novels with a small vocabulary, in windows of 512 tokens; one of three heads sees everything."""
  anchor_pg19.use_sample(config)
  config.model.local.update({"rungs": (32, 128), "windows": (32, 128, 0)})


def with_mean(config: ml_collections.ConfigDict) -> None:
  """What leaves a window is not forgotten altogether."""
  config.name += "_mean"
  config.model.local.far = "mean"


def without_windows(config: ml_collections.ConfigDict) -> None:
  """Softmax attention to all earlier tokens."""
  config.name += "_causal"
  config.model.pattern = ("attention",)
