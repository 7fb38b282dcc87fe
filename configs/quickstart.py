"""A small Transformer-VQ (0.6M parameters) on the shipped sample of Wikipedia; what scripts/quickstart.sh trains.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart --cpu_devices=2

Cost: 226 s on two cores of an AMD EPYC, while other programs ran. Expected: 2.33 bits per byte on test (cold), 2.41
carried.
"""

from __future__ import annotations

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  return common.make_config(arg, small, {"sample": common.is_sample_size})


def small() -> ml_collections.ConfigDict:
  """Updates of 2,048 bytes; each reads new sequences."""
  config = common.default()
  config.name = "quickstart"
  config.model.update({"dim": 128, "layers": 4, "pattern": ("vq",), "block": "gau"})
  config.model.vq.update({"key_dim": 64, "value_dim": 256, "codes": 64, "block_len": 64})
  config.data.update({"source": "enwiki_sample", "seq_len": 512, "update_len": 512, "batch": 4})
  config.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 50})
  config.train.update({"steps": 1280, "steps_per_dispatch": 8, "log_every": 64, "save_every": 320})
  return config
