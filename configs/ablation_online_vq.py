"""Online VQ, Transformer-VQ and Lattice with as many bytes of state, at a size for a CPU core: text, and recall.

python train.py --config=configs/ablation_online_vq.py --workdir=runs/ablation_online_vq
python train.py --config=configs/ablation_online_vq.py:recall,vq --workdir=runs/recall_vq
python scripts/sweep.py configs/sweeps/online_vq.yaml --against=config=vq
python scripts/sweep.py configs/sweeps/online_vq_recall.yaml --against=config=recall,vq

Text is that of configs/ablation_lattice.py, whose base is `lattice` here: two layers of width 128 with two heads, 512
bytes a sequence. A layer's state is at most Lattice's 5,056 numbers, those of its convolutions included, and parameters
are as many to 0.1 %; the rows of VQ's codebook are not among either. Variants, of which one names the memory:

online_vq                   chunks of 16 tokens and 18 codes; the default
full                        the same, but every token is a code until there are 18
hybrid                      a window of 16 tokens in the first layer, as in the paper, and 40 codes in the second
vq                          a window of 16 tokens and 45 codes
lattice                     64 slots
recall                      up to 8 pairs in 32 symbols, layers of width 64, and 2,128 numbers: see `use_recall`

Cost: 40 s on a core of an AMD EPYC, and as long to compile. Expected: 3.303 bits per byte on validation, with `vq`
3.168; in recall 44 to 75 % right answers, with `vq` 19 % (docs/results/online_vq).
"""

from __future__ import annotations

import functools

import ml_collections

from configs import ablation_lattice, common

_PATTERNS = {
  "online_vq": ("online_vq",), "hybrid": ("window", "online_vq"), "full": ("online_vq",), "vq": ("vq",),
  "lattice": ("lattice",)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  arg = common.with_one_of(arg, _PATTERNS, "online_vq")
  memories = {name: functools.partial(use_memory, name=name) for name in _PATTERNS}
  return common.make_config(arg, base, {"recall": use_recall, **memories, "sample": common.is_sample_size})


def base() -> ml_collections.ConfigDict:
  """The sizes of all memories, on text."""
  config = ablation_lattice.base()
  config.name = "ablation_online_vq"
  config.model.online_vq.update({"heads": 2, "key_dim": 32, "value_dim": 32, "codes": 18, "chunk_len": 16})
  config.model.vq.update({
    "heads": 2, "kv_heads": 2, "key_dim": 32, "value_dim": 32, "codes": 45, "window": 16, "block_len": 32})
  config.model.attention.update({
    "heads": 2, "kv_heads": 2, "key_dim": 32, "value_dim": 32, "gated": True})
  return config


def use_memory(config: ml_collections.ConfigDict, name: str) -> None:
  """One memory in both layers, or a window in the first; the MLP gets what parameters Lattice has more."""
  model = config.model
  config.name += f"_{name}"
  model.pattern = _PATTERNS[name]
  if name == "full":
    model.online_vq.growth = "full"
  if name == "hybrid":
    # the other layer's codes, and what its convolutions take: 65 numbers a code, 288 a head
    model.attention.window, model.online_vq.codes = model.online_vq.chunk_len, 2 * model.online_vq.codes + 4
  left = [_own_parameters(model, "lattice") - _own_parameters(model, memory) for memory in model.pattern]
  model.mlp_dim += round(sum(left) / len(left) / (3 * model.dim))


def use_recall(config: ml_collections.ConfigDict) -> None:
  """Which value came with a key: 2, 4 or 8 pairs of 32 keys and as many values, in 32 symbols."""
  config.name += "_recall"
  config.model.update({"dim": 64, "mlp_dim": 128})
  config.model.online_vq.update({"codes": 8, "chunk_len": 4})
  config.model.vq.update({"codes": 24, "window": 4, "block_len": 16})
  # longer values turn a slot more, without which recall is not learned (docs/results/recall)
  config.model.lattice.update({"slots": 25, "unit_values": False})
  config.data.update({"source": "recall", "tokenizer": "symbols:64", "seq_len": 32, "update_len": 32, "batch": 64})
  config.data.recall.update({"pairs": 8, "fewest_pairs": 2})
  config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 50, "weight_decay": 0.1})
  config.train.update({"steps": 600, "steps_per_dispatch": 8, "log_every": 80, "eval_every": 200, "save_every": 600})
  config.eval.update({"batch": 128, "max_batches": 0})


def _own_parameters(model: ml_collections.ConfigDict, name: str) -> int:
  """The number of a layer's parameters other than the projections of values, output and gate."""
  dim, heads, widths = model.dim, model.lattice.heads, model.lattice.value_dim
  frame = heads * model.lattice.conv_width * widths + widths  # convolution of the values, gain of the norm

  def inputs(keys: int, taps: int) -> int:
    return 2 * heads * (dim + taps) * keys

  if name == "lattice":
    slots, taps = model.lattice.slots, model.lattice.conv_width
    return inputs(slots, taps) + heads * (dim + 1) + heads * slots * widths + frame
  if name == "window":
    return inputs(model.attention.key_dim, 0)
  if name == "vq":
    keys = model.vq.key_dim
    return inputs(keys, 0) + heads * keys * (dim + 2)  # relative positions and two biases
  return inputs(model.online_vq.key_dim, model.online_vq.conv_width) + heads + frame
