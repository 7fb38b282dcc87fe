"""Multi-query associative recall: 64 pairs in 256 tokens, two layers of width 128. How much does a memory keep?

python train.py --config=configs/recall.py --workdir=runs/recall
python train.py --config=configs/recall.py:attention --workdir=runs/recall_attention
python eval.py --workdir=runs/recall                                                  # accuracy by pairs and distance
python scripts/plot.py --what=answers runs/recall*/eval_test_cold.json --out=recall.png

The variant names the memory, any of the registry; lattice without one. Recurrent memories have equal states: 2 heads of
64 × 64 numbers. As in Zoology documents of few pairs are among those of many, from which it is learned.

Cost: not yet measured. Expected: not yet measured; on 64 tokens with 8 pairs (data.seq_len, data.update_len,
data.recall.pairs) attention answers 99.4 % after 800 updates.
"""

from __future__ import annotations

import ml_collections

from configs import common
from lattice_jax.layers.registry import MEMORIES


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  variants = common.parse_arg(arg, *MEMORIES, "sample", "smoke")  # it already is of the sample's size
  memories = sorted(variants & set(MEMORIES))
  if len(memories) > 1:
    raise ValueError(f"configs/recall.py has one memory at a time, not {' and '.join(memories)}; name one.")
  memory = memories[0] if memories else "lattice"
  config = common.default()
  config.name = f"recall_{memory}"
  config.model.update({"dim": 128, "layers": 2, "pattern": (memory,), "block": "mlp", "mlp_dim": 256})
  config.model.attention.update({"heads": 2, "kv_heads": 2, "key_dim": 64, "value_dim": 64, "window": 64})
  config.model.vq.update({"heads": 2, "kv_heads": 2, "key_dim": 64, "value_dim": 64, "codes": 64, "block_len": 32})
  config.model.lattice.update({"heads": 2, "slots": 64, "value_dim": 64})
  config.model.baseline.update({"heads": 2, "key_dim": 64, "value_dim": 64, "slots": 32})
  config.data.update({
    "source": "recall", "tokenizer": "symbols:256", "seq_len": 256, "update_len": 256, "batch": 64})
  config.data.recall.update({"pairs": 64, "fewest_pairs": 4})
  config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 200, "weight_decay": 0.1})
  config.train.update({"steps": 2000, "steps_per_dispatch": 8, "log_every": 40, "eval_every": 200, "save_every": 200})
  config.eval.batch = 64
  if "smoke" in variants:
    common.apply_smoke(config)
    config.data.recall.update({"pairs": 8, "fewest_pairs": 2})
  return config
