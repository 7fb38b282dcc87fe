"""Trains a pretrained model of the Llama family further on your own text; all parameters learn.

python train.py --config=configs/finetune.py --workdir=runs/finetune --init_from=smollm2 \
  --config.data.source=text:mybook.txt

`--init_from` takes smollm2, a folder of safetensors, a .gguf file, or the workdir of an earlier run of this kind.
Shape, rotary embedding, context length and tokenizer come from that model and are written into run.json, so `eval.py`
(also with --chat) and `scripts/export.py` need only --workdir=runs/finetune; the tokenizer stays in its old place. This
config sets how the model is computed and trained: model.dtype, remat, xent_chunk, dropout, and the other sections.

`configs/anchor_smollm2.py` puts anchor attention, which has the same parameters, in the place of attention. For a
memory with others, write a config with a complete model section (model.origin=config), which starts from random ones.

Cost: for SmolLM2-135M, 40 updates of 2 × 128 tokens (--config.data.batch=2, seq_len and update_len 128) took 429 s on
two busy cores of an AMD EPYC, 4.1 GB of memory and 1.6 GB of disk for each checkpoint; an update here has four times as
many tokens. Expected: in these 40 updates on the first 200 kB of Sherlock Holmes, validation fell from 1.273 to 1.117
bits per byte (2,048 tokens in windows of 128).
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, adapted, {"sample": common.is_sample_size})


def adapted() -> ml_collections.ConfigDict:
  """Updates of 1,024 tokens at small rates; documents are packed and do not see each other."""
  config = common.default()
  config.name = "finetune"
  # training.init_from.OPEN lists the fields that may still be set
  config.model.update({"origin": "init_from", "pattern": ("attention",), "block": "mlp", "xent_chunk": 256})
  config.data.update({"source": "books_sample", "rows": "packed", "seq_len": 256, "update_len": 256, "batch": 4})
  config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 20, "b2": 0.95, "eps": 1e-8})
  config.train.update({"steps": 200, "log_every": 10, "save_every": 100, "keep_last": 1, "keep_best": 0})
  config.eval.update({"batch": 4, "max_batches": 32})
  return config
