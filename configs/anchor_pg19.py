"""Anchor attention, 24 layers (760M rung), PG-19: sentences collapse into the key and value of their last token.

python scripts/prepare_data.py pg19
python train.py --config=configs/anchor_pg19.py --workdir=runs/anchor_pg19

The paper continues a pretrained model; this trains one from random parameters. `:causal` is its twin with softmax
attention, all else equal.

Cost: not yet measured (33 billion tokens). Expected: not yet measured.

A size for two CPU cores on the shipped novels, and one that only shows that everything runs:

python train.py --config=configs/anchor_pg19.py:sample --workdir=runs/anchor_books
python train.py --config=configs/anchor_pg19.py:smoke --workdir=runs/anchor_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, full_size, {"sample": use_sample, "causal": without_anchors})


def full_size() -> ml_collections.ConfigDict:
  """Sequences of 2048 tokens; a sentence of more than 128 tokens is cut."""
  config = common.default()
  config.name = "anchor_pg19"
  config.model.update({"vocab": 32_000, "pattern": ("anchor",), "tied_embeddings": True, "logit_scale": 0.036})
  common.use_ladder(config, "760m")
  config.data.update({
    "source": "pg19", "tokenizer": "bpe_lossless:32000", "seq_len": 2048, "update_len": 2048, "batch": 128})
  config.data.anchors.rule = "punctuation"
  config.train.update({"steps": 125_000, "log_every": 50, "eval_every": 5000, "save_every": 1000})
  config.eval.update({"batch": 128})
  return config


def use_sample(config: ml_collections.ConfigDict) -> None:
  """Six novels with a small vocabulary, in windows of 512 tokens."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.model.vocab = common.BOOKS_VOCAB
  config.data.update({"tokenizer": common.BOOKS_TOKENIZER, "seq_len": 512, "update_len": 512, "batch": 8})
  config.train.steps = 400
  config.eval.protocol = "cold"


def without_anchors(config: ml_collections.ConfigDict) -> None:
  """Softmax attention to all earlier tokens."""
  config.name += "_causal"
  config.model.pattern = ("attention",)
  config.data.anchors.rule = "none"
