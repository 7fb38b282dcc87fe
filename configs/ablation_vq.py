"""Transformer-VQ at a size for two CPU cores, and one-factor ablations of it as variants.

python train.py --config=configs/ablation_vq.py --workdir=runs/ablation_vq
python train.py --config=configs/ablation_vq.py:codes512 --workdir=runs/codes512
python scripts/sweep.py configs/sweeps/vq_ablation.yaml --jobs=2 --beyond=32 --against=config=base

The last command runs all of them, with three seeds each.

The data are photographs, because their far past helps a model that learns for a minute: the window is five pixels, the
sequence of 512 tokens two and a half rows. A sequence is 32 windows long and one update, with full backpropagation.
K = 64, because scores are at most √K and a sharp one must outweigh 512 others: √32 is less than log 512. Variants can
be combined, as in `:codes512,revive`:

base                        S 128, window 16, one head (SHGA); the default
near_start                  a learned score of the window, which the paper does not have. It is large at the start, so
                            that the cache comes in gradually; without it nearly all attention begins there
nocache                     the window alone
codes64, 256, 512, 1024     size of the codebook
block32, block128           tokens read at a time, not 64: the same results at another cost
window32, window64          uncompressed tokens
mqa, mha                    two query heads with one or two key heads, and an MLP, as in the paper
revive, data_start          codes that nothing uses restart; codes start from the first update's keys
softmax                     the twin: full softmax attention instead
bfloat16                    activations in half precision

Cost: 85 to 155 s on a core of an AMD EPYC; 4½ minutes with 512 codes, 9 with 1,024. Expected: 4.140 bits per dim
on validation, 4.385 without the cache (docs/results/ablation_vq).
"""

from __future__ import annotations

import functools

import ml_collections

from configs import common

_CODES = {f"codes{codes}": codes for codes in (64, 256, 512, 1024)}
_BLOCKS = {f"block{length}": length for length in (32, 128)}
_WINDOWS = {f"window{length}": length for length in (32, 64)}
_HEADS = ("mqa", "mha")
_OTHERS = ("near_start", "nocache", "revive", "data_start", "softmax", "bfloat16")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  names = (*_CODES, *_BLOCKS, *_WINDOWS, *_HEADS, *_OTHERS)
  variants = {name: functools.partial(use_variant, name=name) for name in names}
  return common.make_config(arg, base, {"base": common.is_sample_size, **variants, "sample": common.is_sample_size})


def base() -> ml_collections.ConfigDict:
  """A hundred thousand parameters on the shipped photographs: so small that it reads three million bytes a minute."""
  config = common.default()
  config.name = "ablation_vq"
  config.model.update({"dim": 64, "layers": 2, "pattern": ("vq",), "block": "gau"})
  config.model.vq.update({"key_dim": 64, "value_dim": 128, "codes": 128, "block_len": 64, "window": 16})
  config.data.update({"source": "photos_sample", "seq_len": 512, "update_len": 512, "batch": 4})
  config.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 100, "final_fraction": 0.02})
  config.train.update({"steps": 1500, "steps_per_dispatch": 20, "log_every": 100, "save_every": 800})
  return config


def use_variant(config: ml_collections.ConfigDict, name: str) -> None:
  """Changes one thing."""
  vq = config.model.vq
  config.name += f"_{name}"
  if name in _CODES:
    vq.codes = _CODES[name]
  elif name in _BLOCKS:
    vq.block_len = _BLOCKS[name]
  elif name in _WINDOWS:
    vq.window = _WINDOWS[name]
  elif name in _HEADS:
    use_heads(config.model, name)
  elif name == "nocache":
    vq.cache = False
  elif name == "revive":
    vq.revive_below = 0.1
  elif name == "data_start":
    vq.data_start = True
  elif name == "softmax":
    common.make_softmax_twin(config)
  elif name == "near_start":
    vq.near_start = 6.0
  elif name == "bfloat16":
    config.model.dtype = "bfloat16"


def use_heads(model: ml_collections.ConfigDict, name: str) -> None:
  """Two heads without a gate, and an MLP instead of every second gated unit, as in the paper, at equal parameters."""
  model.vq.update({
    "heads": 2, "kv_heads": 1 if name == "mqa" else 2, "value_dim": model.vq.key_dim, "gated": False})
  model.update({
    "layers": model.layers // 2, "block": "mlp", "mlp": "squared_relu", "mlp_dim": 352 if name == "mqa" else 256})
