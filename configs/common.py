"""What the experiment files share: defaults, variants, the smoke size, the softmax twin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import ml_collections

from lattice_jax.config_dict import default_config
from lattice_jax.domains import did_you_mean
from lattice_jax.memories.registry import sections

# Real data sets and the shipped samples that stand in for them.
SAMPLES = {"enwik8": "enwiki_sample", "pg19": "books_sample", "imagenet64": "photos_sample"}
BOOKS_VOCAB = 2048
BOOKS_TOKENIZER = f"bpe_lossless:{BOOKS_VOCAB}"

default = default_config  # every field with its default; assigning to a misspelt field raises


def make_config(
  arg: str, full_size: Callable[[], ml_collections.ConfigDict],
  variants: Mapping[str, Callable[[ml_collections.ConfigDict], object]],
) -> ml_collections.ConfigDict:
  """The experiment, changed by the variants that `arg` names in the order they have here, and last by `smoke`."""
  changes = {**variants, "smoke": apply_smoke}
  asked = parse_arg(arg, *changes)
  config = full_size()
  for name, change in changes.items():
    if name in asked:
      change(config)
  return config


def with_one_of(arg: str, names: Collection[str], default: str) -> str:
  """`arg` with `default` added where it has none of the names.

  Raises:
    ValueError: it has several.
  """
  asked = [name for name in names if name in arg.split(",")]
  if len(asked) > 1:
    raise ValueError(f"this config takes one memory at a time, not {' and '.join(asked)}; name one.")
  return arg if asked else f"{arg},{default}"


def parse_arg(arg: str, *variants: str) -> frozenset[str]:
  """The variants named after the colon of `--config=FILE:a,b`.

  Raises:
    ValueError: a variant is not one of `variants`.
  """
  asked = [name for name in arg.split(",") if name]
  for name in asked:
    if name not in variants:
      raise UnknownVariant(name, variants)
  return frozenset(asked)


def use_published_details(config: ml_collections.ConfigDict) -> None:
  """What the published code of Transformer-VQ does and we would not, each explained in docs/transformer_vq.md."""
  config.model.update({"norm_bias": True, "tied_bias": True, "float32_head": True})
  config.model.vq.update({"joined": True, "key_gradient": "blocks", "stale_rows": True})
  config.optimizer.zero_start = True


class UnknownVariant(ValueError):
  """`variants` are those that the experiment has."""

  def __init__(self, name: str, variants: tuple[str, ...]):
    super().__init__(
      f"this config has no variant {name!r}; it has {', '.join(variants)}.{did_you_mean(name, variants)}")
    self.variants = variants


def variants(get_config: Callable[[str], ml_collections.ConfigDict]) -> tuple[str, ...]:
  """The variants of an experiment, which says them when it is asked for one that none has."""
  try:
    get_config("?")
  except UnknownVariant as error:
    return error.variants
  return ()


def use_paper_adafactor(config: ml_collections.ConfigDict) -> None:
  """How the paper trains its large models: rates are shares of a parameter's own size, clipping is Adafactor's own."""
  config.optimizer.update({
    "name": "adafactor", "learning_rate": 1e-2, "warmup_steps": 10_000, "schedule": "cosine", "final_fraction": 0.1,
    "weight_decay": 0.0, "clip_norm": 0.0})


# Layers, model width, heads, MLP width, peak learning rate: sizes at which papers on recurrent memories compare.
LADDER = {
  "125m": (12, 768, 12, 2048, 6e-4), "350m": (24, 1024, 16, 2736, 3e-4), "760m": (24, 1536, 16, 4096, 2.5e-4),
  "1.3b": (24, 2048, 16, 5120, 4e-4)}


def use_ladder(config: ml_collections.ConfigDict, size: str) -> None:
  """A memory and SwiGLU in each block; AdamW that ends at a rate of 3e-5. Usual values, none of them tuned."""
  layers, dim, heads, mlp_dim, rate = LADDER[size]
  config.model.update({
    "layers": layers, "dim": dim, "mlp_dim": mlp_dim, "block": "mlp", "mlp": "swiglu", "dtype": "bfloat16",
    "remat": "boundary"})
  config.model.lattice.update({"heads": heads, "value_dim": dim // heads})
  config.model.attention.update({
    "heads": heads, "kv_heads": heads, "key_dim": dim // heads, "value_dim": dim // heads})
  config.optimizer.update({
    "name": "adamw", "learning_rate": rate, "warmup_steps": 2000, "schedule": "cosine", "final_fraction": 3e-5 / rate,
    "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "decay": "scaled", "clip_norm": 1.0})


def is_sample_size(config: ml_collections.ConfigDict) -> None:
  """The variant `sample` of experiments that have its size already: changes nothing."""


def shrink_to_sample(config: ml_collections.ConfigDict) -> None:
  """Ten minutes on two cores on the shipped sample: little data and time, so no dropout and faster learning.

  Without the details of `use_published_details`: samples compare memories, not codes.
  """
  config.data.source = SAMPLES[config.data.source]
  config.model.update({
    "dim": 192, "layers": 6, "tied_embeddings": False, "logit_scale": 1.0, "final_norm": True, "dropout": 0.0,
    "layer_drop": 0.0, "dtype": "float32", "remat": "none", "norm_bias": False, "tied_bias": False,
    "float32_head": False, "position_wavelength": 0.0})
  config.model.vq.update({
    "key_dim": 64, "value_dim": 384, "codes": 128, "block_len": 64, "sinusoid_dropout": 0.0, "joined": False,
    "key_gradient": "window", "stale_rows": False})
  if config.model.block == "mlp":
    config.model.update({"layers": 4, "mlp_dim": 384})
    config.model.lattice.update({"heads": 3, "slots": 64, "value_dim": 64, "form": "scan"})
    config.model.attention.update({"heads": 3, "kv_heads": 3, "key_dim": 64, "value_dim": 64, "window": 64})
  config.optimizer.update({
    "name": "adamw", "learning_rate": 3e-3, "warmup_steps": 100, "zero_start": False, "weight_decay": 0.05,
    "decay": "scaled", "clip_norm": 1.0})
  config.train.update({"steps_per_dispatch": 4, "log_every": 40, "eval_every": 0, "save_every": 200})
  config.eval.update({"batch": 8, "chunk_len": 0, "protocol": "both"})


def apply_smoke(config: ml_collections.ConfigDict) -> None:
  """Shrinks any experiment to seconds on a CPU, on the shipped sample, with the same features switched on."""
  updates_per_sequence = min(2, config.data.seq_len // config.data.update_len)
  config.name += "_smoke"
  config.model.origin = "config"  # runs without the files of a pretrained model
  _shrink_model(config.model)
  if config.optimizer.last_layers:  # which the pattern names one by one
    config.model.update({"layers": 2, "pattern": config.model.pattern[-2:]})
    config.optimizer.last_layers = 1
  if config.data.source in SAMPLES:
    config.data.source = SAMPLES[config.data.source]
  if config.data.tokenizer.startswith("bpe"):
    config.data.tokenizer = BOOKS_TOKENIZER
    config.model.vocab = BOOKS_VOCAB + (config.data.anchors.insert != "none")
  config.data.update({"seq_len": 64, "update_len": 64 // updates_per_sequence, "batch": 16})
  config.optimizer.warmup_steps = 2
  config.mesh.update({"seq": 1, "model": 1})  # on whatever there is
  config.train.update({
    "steps": 4, "accumulate": min(2, config.train.accumulate),
    "steps_per_dispatch": min(2, config.train.steps_per_dispatch), "log_every": 1, "eval_every": 0, "save_every": 2})
  config.eval.update({"batch": 16, "seq_len": 0, "chunk_len": 0, "max_batches": 2})
  if config.data.source == "recall":
    config.data.recall.update({"pairs": 8, "fewest_pairs": 2})


def _shrink_model(model: ml_collections.ConfigDict) -> None:
  model.update({"dim": 16, "layers": 2 * len(model.pattern), "mlp_dim": 32, "xent_chunk": 128})
  for part in sections():
    model[part.name].update(part.smoke(model[part.name]))


def make_softmax_twin(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The same experiment with softmax attention instead of Transformer-VQ: width, tokens, and parameters to 0.3 %.

  Keys are half again as wide: q and k then hold the parameters that VQ spends on its position projection.
  Softmax attention remembers nothing between the updates of a sequence, so an update is a whole sequence, of as many
  tokens in fewer rows (or, where it holds less than one, fewer updates), and rows that follow a document become packed.
  """
  model, data = config.model, config.data
  model.pattern = tuple("attention" if name == "vq" else name for name in model.pattern)
  model.attention.update({
    "heads": model.vq.heads, "kv_heads": model.vq.kv_heads, "key_dim": model.vq.key_dim * 3 // 2,
    "value_dim": model.vq.value_dim, "gated": model.vq.gated, "qk_norm": True})
  rows = data.batch * data.update_len / data.seq_len
  data.update({"batch": max(1, int(rows)), "update_len": data.seq_len})
  config.train.steps = int(config.train.steps * rows / data.batch)
  if data.rows == "documents":
    data.rows = "packed"
  config.eval.chunk_len = 0
  return config
