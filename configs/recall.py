"""Multi-query associative recall: 64 pairs in 256 tokens, two layers of width 128. How much does a memory keep?

python train.py --config=configs/recall.py --workdir=runs/recall
python train.py --config=configs/recall.py:attention --workdir=runs/recall_attention
python eval.py --workdir=runs/recall                                                  # accuracy by pairs and distance
python scripts/plot.py --what=answers runs/recall*/eval_test_cold_*.json --out=recall.png
python train.py --config=configs/recall.py:short,deltanet --workdir=runs/recall_short
python scripts/lengths.py runs/recall_short --lengths=64,256,1024,4096 --out=recall_lengths

The variant names a memory of the registry; the default is lattice. Recurrent memories have states of equal size: 2
heads of 64 × 64 numbers, twice 64 × 65 for ttt_linear with its open mini-batch's sums, 4,112 for online_vq with
its open chunk. As in Zoology, documents of few pairs are mixed with those of many, which makes the task learnable.

short       up to 8 pairs in 64 tokens, in 1,000 updates, to be asked afterwards at distances that training has not seen
            (configs/sweeps/recall_length.yaml)
returning   Lattice whose slots go back to where a document began

Cost: 12 minutes on a core of an AMD EPYC with DeltaNet or linear attention, 32 with Lattice. Expected: 98 % of all
answers with Lattice, 97 % among 64 pairs; after 2,000 updates 92 % with either of the other two, 86 and 87 % among 64
pairs (docs/results/recall). On 64 tokens with 8 pairs (data.seq_len, data.update_len, data.recall.pairs, and
data.batch=64) attention answered 99.4 % after 800 updates.
"""

from __future__ import annotations

import functools

import ml_collections

from configs import common
from lattice_jax.config import MEMORY_NAMES


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  memories = {name: functools.partial(use_memory, name) for name in MEMORY_NAMES}
  arg = common.with_one_of(arg, MEMORY_NAMES, "lattice")
  variants = {**memories, "returning": use_returning, "short": use_short, "sample": common.is_sample_size}
  return common.make_config(arg, without_memory, variants)


def without_memory() -> ml_collections.ConfigDict:
  """Sizes of all memories; states of recurrent ones are equal, those of online_vq and ttt_linear's weights to 1.6 %."""
  config = common.default()
  config.name = "recall"
  config.model.update({"dim": 128, "layers": 2, "block": "mlp", "mlp_dim": 256})
  config.model.attention.update({"heads": 2, "kv_heads": 2, "key_dim": 64, "value_dim": 64, "window": 64})
  config.model.local.windows = (64,)
  config.model.vq.update({"heads": 2, "kv_heads": 2, "key_dim": 64, "value_dim": 64, "codes": 64, "block_len": 32})
  # A value of length one turns a slot too little: with such values the task was not learned (docs/results/recall).
  config.model.lattice.update({"heads": 2, "slots": 64, "value_dim": 64, "unit_values": False})
  for section in ("gated_linear", "delta", "gated_slots"):
    config.model[section].update({"heads": 2, "key_dim": 64, "value_dim": 64})
  config.model.gated_slots.slots = 32
  config.model.ttt.update({"heads": 2, "value_dim": 64})
  # Units see themselves alone: as many as another memory's state has would be 64 times the width of the model.
  config.model.gru.update({"heads": 2, "value_dim": 64})
  config.model.online_vq.update({"heads": 2, "key_dim": 64, "value_dim": 64, "codes": 16, "chunk_len": 16})
  config.data.update({
    "source": "recall", "tokenizer": "symbols:256", "seq_len": 256, "update_len": 256, "batch": 16})
  config.data.recall.update({"pairs": 64, "fewest_pairs": 4})
  config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 200, "weight_decay": 0.1})
  config.train.update({"steps": 3000, "steps_per_dispatch": 8, "log_every": 40, "eval_every": 400, "save_every": 400})
  config.eval.batch = 64
  return config


def use_memory(name: str, config: ml_collections.ConfigDict) -> None:
  """One memory in both layers."""
  config.name += f"_{name}"
  config.model.pattern = (name,)


def use_returning(config: ml_collections.ConfigDict) -> None:
  """Lattice whose slots go back to where a document began; to be named with `lattice` or alone."""
  config.name += "_returning"
  config.model.lattice.update({"forget": True, "state": "returning"})


def use_short(config: ml_collections.ConfigDict) -> None:
  """Up to 8 pairs in 64 tokens, learned in a thousand updates of 2,048."""
  config.name += "_short"
  config.data.update({"seq_len": 64, "update_len": 64, "batch": 32})
  config.data.recall.update({"pairs": 8, "fewest_pairs": 2})
  config.train.update({"steps": 1000, "eval_every": 200, "save_every": 200})
  config.optimizer.warmup_steps = 100
