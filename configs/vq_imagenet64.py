"""Transformer-VQ, 48 gated attention units (1.2B parameters), ImageNet64, with the values of the paper.

What the paper does not state is as in its first published code; docs/transformer_vq.md says where.

python scripts/prepare_data.py imagenet64
python train.py --config=configs/vq_imagenet64.py --workdir=runs/vq_imagenet64

Cost: not yet measured (98 billion tokens). Expected: the paper reports 3.16 bits per dim on test, and 3.22 with the
190M parameters of the variant `:190m`; not yet measured.

A size for two CPU cores on the shipped photographs, and one that only shows that everything runs:

python train.py --config=configs/vq_imagenet64.py:sample --workdir=runs/vq_photos --cpu_devices=2
python train.py --config=configs/vq_imagenet64.py:smoke --workdir=runs/vq_photos_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, paper, {"190m": use_190m, "sample": use_sample})


def paper() -> ml_collections.ConfigDict:
  """An image is a sequence of 12,288 tokens, read in updates of 1,536 with the memory carried between them."""
  config = common.default()
  config.name = "vq_imagenet64"
  config.model.update({
    "vocab": 259, "dim": 2048, "layers": 48, "pattern": ("vq",), "block": "gau", "tied_embeddings": True,
    "logit_scale": 0.005, "position_wavelength": 1e5, "dtype": "bfloat16", "remat": "full"})
  config.model.vq.update({"key_dim": 128, "value_dim": 4096, "codes": 512, "block_len": 512, "sinusoid_dropout": 0.1})
  common.use_published_details(config)
  config.data.update({"source": "imagenet64", "seq_len": 12_288, "update_len": 1536, "batch": 128})
  common.use_paper_adafactor(config)
  config.train.update({"steps": 500_000, "log_every": 50, "eval_every": 5000, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 1536})
  return config


def use_190m(config: ml_collections.ConfigDict) -> None:
  """The paper's smaller model."""
  config.name += "_190m"
  config.model.dim = 768
  config.model.vq.value_dim = 1536


def use_sample(config: ml_collections.ConfigDict) -> None:
  """A small model for nine photographs and a few minutes; its window reaches the row above.

  Updates are short and of many images, because all rows of an update read the same part of their images.
  """
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.model.update({"dim": 128, "layers": 4})
  config.model.vq.update({"value_dim": 256, "block_len": 128, "window": 256})
  config.data.update({"source": "photos_sample", "update_len": 384, "batch": 16})
  config.train.steps = 460
