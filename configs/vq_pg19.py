"""Transformer-VQ, 48 gated attention units (1.3B parameters), PG-19, with the values of the paper.

What the paper does not state is as in its first published code; docs/transformer_vq.md says where.

python scripts/prepare_data.py pg19
python train.py --config=configs/vq_pg19.py --workdir=runs/vq_pg19

The tokenizer is lossless. The paper's own loses line breaks, which makes its text shorter for the same count of words;
`prepare_data.py pg19 --tokenizer=bpe_paper:32000` and `--config.data.tokenizer=bpe_paper:32000` reproduce it.

Cost: not yet measured (131 billion tokens). Expected: the paper reports a word perplexity of 26.6 on test, with its
tokenizer; not yet measured.

The variant `long` has sequences of 131,072 tokens, each in one update, and two rows, as many tokens an update as above.
A row lies on 32 devices (`mesh.seq`) of 4,096 tokens each, and layers on 4 (`mesh.model`): 256 chips for both rows. It
is ours and not of the paper:

python train.py --config=configs/vq_pg19.py:long --workdir=runs/vq_pg19_long

A size for two CPU cores on the shipped novels, and one that only shows that everything runs:

python train.py --config=configs/vq_pg19.py:sample --workdir=runs/vq_books --cpu_devices=2
python train.py --config=configs/vq_pg19.py:smoke --workdir=runs/vq_books_smoke  # a minute
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, paper, {"long": use_long_sequences, "sample": use_sample})


def paper() -> ml_collections.ConfigDict:
  """Sequences of 8192 tokens in updates of 2048, memory carried between them."""
  config = common.default()
  config.name = "vq_pg19"
  config.model.update({
    "vocab": 32_000, "dim": 2048, "layers": 48, "pattern": ("vq",), "block": "gau", "tied_embeddings": True,
    "logit_scale": 0.005, "dropout": 0.1, "layer_drop": 0.1, "dtype": "bfloat16", "remat": "full"})
  config.model.vq.update({"key_dim": 128, "value_dim": 4096, "codes": 512, "block_len": 512, "sinusoid_dropout": 0.1})
  common.use_published_details(config)
  config.data.update({
    "source": "pg19", "tokenizer": "bpe_lossless:32000", "seq_len": 8192, "update_len": 2048, "batch": 128})
  common.use_paper_adafactor(config)
  config.train.update({"steps": 500_000, "log_every": 50, "eval_every": 5000, "save_every": 1000})
  config.eval.update({"batch": 128, "chunk_len": 2048})
  return config


def use_long_sequences(config: ml_collections.ConfigDict) -> None:
  """One update is a whole sequence, whose gradient then reaches from its last token to its first through the cache."""
  config.name += "_long"
  config.data.update({"seq_len": 131_072, "update_len": 131_072, "batch": 2})
  config.mesh.update({"seq": 32, "model": 4})
  config.eval.update({"batch": 2, "chunk_len": 0})


def use_sample(config: ml_collections.ConfigDict) -> None:
  """Six novels with a small vocabulary, in rows that carry the memory along each book to its end."""
  config.name += "_sample"
  common.shrink_to_sample(config)
  config.model.vocab = common.BOOKS_VOCAB
  config.data.update({
    "tokenizer": common.BOOKS_TOKENIZER, "rows": "documents", "seq_len": 2048, "update_len": 512, "batch": 8})
  config.train.steps = 450
