"""Anchor attention at a size for two CPU cores, and one-factor ablations of it as variants.

python train.py --config=configs/ablation_anchor.py --workdir=runs/ablation_anchor
python train.py --config=configs/ablation_anchor.py:copies2 --workdir=runs/copies2
python scripts/sweep.py configs/sweeps/anchor_ablation.yaml --jobs=2 --against=config=base

The last command runs all of them, with three seeds each. The base is `configs/anchor_pg19.py:sample`. Bits per byte
also count the tokens <AC> that `insert` and `copies2` add. Variants can be combined, as in `:insert,causal`:

base                        each sentence collapses into its last token; the default
insert                      a token <AC> behind each sentence is its anchor
copies2                     two of them: both stay
line                        lines collapse, not sentences
every16                     every 16 tokens collapse
fanout4                     every fourth anchor takes the place of the three before it
reach8                      the newest eight anchors alone are seen
sees                        anchors see earlier anchors
nobos                       the first token is no anchor
random16                    in training segments of 2 to 16 tokens, one length for each sequence
dropout                     in training a tenth of the anchors are not marked
repeat                      in training a quarter of the sequences say their first half again
causal                      the twin: full softmax attention instead

Cost: 400 updates of 4,096 tokens, about 13 minutes of training each at 2,100 tokens/s on two CPU cores.
Expected: after 150 updates 2.14 bits per byte on the test split; docs/anchors.md has what was compared.
"""

from __future__ import annotations

import functools

import ml_collections

from configs import anchor_pg19, common

_INSERTED = {"rule": "token:<AC>", "insert": "sentence"}
# Fields of data.anchors and of model.anchor. In 512 tokens two <AC> behind each sentence protect at most 171.
_VARIANTS = {
  "insert": (_INSERTED, {}),
  "copies2": ({**_INSERTED, "copies": 2}, {"protected": 171}),
  "line": ({"rule": "line"}, {}),
  "every16": ({"rule": "every:16"}, {}),
  "fanout4": ({}, {"fanout": 4}),
  "reach8": ({}, {"reach": 8}),
  "sees": ({}, {"anchors_see_anchors": True}),
  "nobos": ({}, {"keep_bos": False}),
  "random16": ({"random_every": 16}, {}),
  "dropout": ({"dropout": 0.1}, {}),
  "repeat": ({"repeat_share": 0.25}, {}),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  variants = {name: functools.partial(use_variant, name=name) for name in _VARIANTS}
  return common.make_config(arg, base, {
    "base": common.is_sample_size, **variants, "causal": anchor_pg19.without_anchors, "sample": common.is_sample_size})


def base() -> ml_collections.ConfigDict:
  """Two million parameters on six novels, in windows of 512 tokens."""
  config = anchor_pg19.get_config("sample")
  config.name = "ablation_anchor"
  return config


def use_variant(config: ml_collections.ConfigDict, name: str) -> None:
  """Changes one thing."""
  config.name += f"_{name}"
  marks, memory = _VARIANTS[name]
  config.data.anchors.update(marks)
  config.model.anchor.update(memory)
  if config.data.anchors.insert != "none":
    config.model.vocab = common.BOOKS_VOCAB + 1
