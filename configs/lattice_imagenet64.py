"""Lattice, 24 layers (350M rung), ImageNet64. The paper has no such experiment: all values are ours.

python scripts/prepare_data.py imagenet64
python train.py --config=configs/lattice_imagenet64.py --workdir=runs/lattice_imagenet64

Model and optimizer are the 350M rung of the ladder on which recurrent memories are compared, with 64 slots per
head; data and number of tokens are those of `vq_imagenet64`.

Cost: not yet measured (98 billion tokens). Expected: not yet measured.

A size for two CPU cores on the shipped photographs, and one that only shows that everything runs:

python train.py --config=configs/lattice_imagenet64.py:sample --workdir=runs/lattice_photos --cpu_devices=2
python train.py --config=configs/lattice_imagenet64.py:smoke --workdir=runs/lattice_photos_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample})


def full_size() -> ml_collections.ConfigDict:
  """An image is a sequence of 12,288 tokens, read in updates of 1,536 with the memory carried between them."""
  config = common.default()
  config.name = "lattice_imagenet64"
  config.model.update({"vocab": 259, "pattern": ("lattice",)})
  common.use_ladder(config, "350m")
  config.model.lattice.update({"slots": 64, "form": "parallel", "chunk_len": 16, "rounds": 8})
  config.data.update({"source": "imagenet64", "seq_len": 12_288, "update_len": 1536, "batch": 128})
  config.train.update({"steps": 500_000, "log_every": 50, "eval_every": 5000, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 1536})
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """A small model for nine photographs and a few minutes."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.model.update({"dim": 128, "layers": 3, "mlp_dim": 256})
  config.model.lattice.heads = 2
  config.data.update({"update_len": 1536, "batch": 4})
  config.train.steps = 500
