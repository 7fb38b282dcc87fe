"""Lattice at a size for a CPU core, and one-factor ablations of it as variants.

python train.py --config=configs/ablation_lattice.py --workdir=runs/ablation_lattice
python train.py --config=configs/ablation_lattice.py:slots16 --workdir=runs/slots16
python scripts/sweep.py configs/sweeps/lattice_slots.yaml --jobs=2 --against=config=slots64 --x=config --x=config=slots
python scripts/sweep.py configs/sweeps/lattice_ablation.yaml --jobs=2 --against=config=base
python scripts/sweep.py configs/sweeps/lattice_rounds.yaml --jobs=2 --against=config=base
python scripts/sweep.py configs/sweeps/lattice_length.yaml --jobs=2 --against=config=base

The last four make whole tables with three seeds each. A sequence has 512 bytes and is one update, with full
backpropagation. Values are 32 wide, so that two hundred slots still take three minutes. Variants can be combined, as in
`:slots32,similarity`:

base                        64 slots, decoding, retracted, steps up to 1, exact token scan; the default
slots16, 32, 64, 96, 128, 192
                            slots per head; the MLP gets the remaining parameters; the base has 64
encoding, similarity        the other objectives
step0.25, 0.5, 2            longest step
accumulated                 slots grow in length, and so become harder to turn
nonorm                      slots of any length, hence no projection: this is the delta rule, from empty slots
noproject                   slots of length one, but the component along a slot is written too
forget                      a forget gate
returning                   one by which slots go back to where a document began
freevalues                  values of any length
noconv                      no convolutions before the memory
live4, 16, 64               frozen gates, running residual, in chunks of this many tokens
frozen4, 16, 64             frozen residual too, which is how we read the paper's own chunks
additive4, 16, 64           whole steps taken at the chunk's start
rounds0, 1, 2, 4            the parallel form in chunks of 16 with exactly this many rounds
parallel                    the parallel form until it is exact: the same results at another cost
carry2048, 8192, 32768      sequences of so many bytes in updates of 512, the memory carried from one to the next
long2048                    sequences of 2,048 bytes, each one update of one row, with full backpropagation
hybrid                      a window of 64 in the first layer
softmax                     full softmax attention with rotary positions instead
linear, scalar_decay, gla, deltanet, gated_deltanet, kimi_delta, gated_slots, ttt_linear
                            another recurrence instead, with a state of the same size; 1.6 % smaller for gated_slots,
                            3 % larger for ttt_linear, half of it sums of the open mini-batch (configs/recurrences.py
                            has all of them at equal bytes)
linear_faithful, scalar_decay_faithful, …
                            the same eight as their papers or authors have them, with the frame, the shares of the
                            width and the ε of their code in place of ours; states are as large, 3 % larger for
                            linear, twice as large for ttt_linear, half of it sums of the open mini-batch

Cost: 60 to 150 s on a core of an AMD EPYC. Expected: 2.985 bits per byte on validation for the base; the others are in
docs/results/lattice_slots, lattice_ablation, lattice_rounds, lattice_length and recurrences.
"""

from __future__ import annotations

import functools

import ml_collections

from configs import common, delta_enwik8

_SLOTS = {f"slots{slots}": slots for slots in (16, 32, 64, 96, 128, 192)}
_STEPS = {f"step{step:g}": step for step in (0.25, 0.5, 2.0)}
_CHUNKS = {f"{form}{length}": (form, length) for form in ("live", "frozen", "additive") for length in (4, 16, 64)}
_ROUNDS = {f"rounds{rounds}": rounds for rounds in (0, 1, 2, 4)}
_FIELDS = {
  "encoding": {"objective": "encoding"},
  "similarity": {"objective": "similarity"},
  "accumulated": {"state": "accumulated"},
  "noproject": {"projected": False},
  "forget": {"forget": True},
  "returning": {"forget": True, "state": "returning"},
  "freevalues": {"unit_values": False},
  "noconv": {"conv_width": 0},
  "parallel": {"form": "parallel"},
}
_CARRIES = {f"carry{length}": length for length in (2048, 8192, 32_768)}
_MEMORIES = ("nonorm", "hybrid", "softmax")
# Shares of the width by the defaults of the published code: keys and values as wide as the model, keys half as wide
# (gla), values twice as wide (scalar_decay, which is Mamba-2). Those of gated_deltanet are three quarters and one and a
# half times as wide there, here half and once, for the state.
_FAITHFUL = {
  "linear": {"heads": 4, "key_dim": 32},
  "scalar_decay": {"heads": 8, "key_dim": 16, "norm_eps": 1e-5},
  "gla": {"heads": 2, "key_dim": 32, "value_dim": 64, "conv_width": 0, "norm_eps": 1e-5},
  "deltanet": {"heads": 4, "key_dim": 32, "gated": False, "norm_eps": 1e-5},
  "gated_deltanet": {"heads": 2, "key_dim": 32, "value_dim": 64, "norm_eps": 1e-5},
  "kimi_delta": {"heads": 4, "key_dim": 32, "norm_eps": 1e-5},
  "gated_slots": {"heads": 4, "key_dim": 32, "slots": 16, "conv_width": 0},
  "ttt_linear": {"heads": 4},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  recurrences = (*delta_enwik8.RECURRENCES, *(f"{name}_faithful" for name in _FAITHFUL))
  names = (*_SLOTS, *_STEPS, *_FIELDS, *_CHUNKS, *_ROUNDS, *_CARRIES, "long2048", *_MEMORIES, *recurrences)
  variants = {name: functools.partial(use_variant, name=name) for name in names}
  arg = common.with_one_of(arg, ("nonorm", "softmax", *recurrences), "base")
  return common.make_config(arg, base, {"base": common.is_sample_size, **variants, "sample": common.is_sample_size})


def base() -> ml_collections.ConfigDict:
  """Somewhat less than half a million parameters, on the shipped sample of Wikipedia."""
  config = common.default()
  config.name = "ablation_lattice"
  config.model.update({"dim": 128, "layers": 2, "pattern": ("lattice",), "block": "mlp", "mlp_dim": 320})
  config.model.lattice.update({"heads": 2, "slots": 64, "value_dim": 32})
  config.data.update({"source": "enwiki_sample", "seq_len": 512, "update_len": 512, "batch": 4})
  config.optimizer.update({"learning_rate": 4e-3, "warmup_steps": 50})
  config.train.update({"steps": 256, "steps_per_dispatch": 8, "log_every": 32, "save_every": 128})
  config.eval.max_batches = 16  # 131 kB of the 304
  return config


def use_variant(config: ml_collections.ConfigDict, name: str) -> None:
  """Changes one thing."""
  model, lattice = config.model, config.model.lattice
  config.name += f"_{name}"
  if name in _SLOTS:
    use_slots(model, _SLOTS[name])
  elif name in _STEPS:
    lattice.max_step = _STEPS[name]
  elif name in _FIELDS:
    lattice.update(_FIELDS[name])
  elif name in _CHUNKS:
    lattice.form, lattice.chunk_len = _CHUNKS[name]
  elif name in _ROUNDS:
    lattice.update({"form": "parallel", "chunk_len": 16, "rounds": _ROUNDS[name], "tolerance": 0.0})
  elif name in _CARRIES:
    config.data.seq_len, config.eval.seq_len = _CARRIES[name], config.data.update_len
  elif name == "long2048":
    config.data.update({"seq_len": 2048, "update_len": 2048, "batch": 1})
    config.eval.seq_len = 512
  elif name == "nonorm":
    # The projection is the derivative of the norm; without both, a step on ½‖v − kS‖² is DeltaNet's.
    delta_enwik8.use_recurrence(model, "deltanet")
  elif name == "hybrid":
    model.pattern = ("window", "lattice")
    use_attention(model, window=64)
  elif name == "softmax":
    model.pattern = ("attention",)
    use_attention(model, window=0)
  elif name in delta_enwik8.RECURRENCES:
    delta_enwik8.use_recurrence(model, name)
  elif name.removesuffix("_faithful") in _FAITHFUL:
    published = name.removesuffix("_faithful")
    delta_enwik8.use_published(model, published, {"value_dim": lattice.value_dim, **_FAITHFUL[published]})


def use_slots(model: ml_collections.ConfigDict, slots: int) -> None:
  """Takes from the MLP what a slot costs: columns of queries and keys, their convolutions, and its initial value."""
  lattice = model.lattice
  cost = lattice.heads * (2 * model.dim + 2 * lattice.conv_width + lattice.value_dim)
  model.mlp_dim -= round(cost * (slots - lattice.slots) / (3 * model.dim))
  lattice.slots = slots


def use_attention(model: ml_collections.ConfigDict, window: int) -> None:
  """Softmax attention with the sizes of the memory, and with its gate."""
  lattice = model.lattice
  model.attention.update({
    "heads": lattice.heads, "kv_heads": lattice.heads, "key_dim": lattice.slots, "value_dim": lattice.value_dim,
    "gated": True, "qk_norm": True, "window": window})
