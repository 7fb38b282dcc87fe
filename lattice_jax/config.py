"""The config as frozen dataclasses. A field's default, domain and meaning stand here and nowhere else.

`config_checks.py` turns these into the locked ConfigDict that files under `configs/` edit, and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lattice_jax.cache.config import CacheConfig
from lattice_jax.fields import (
  at_least,
  choice,
  fraction,
  free,
  leaves,
  names,
  pairs,
  place,
  positive,
  section,
  seed,
  switch,
  text,
  within,
)
from lattice_jax.memories.registry import FOLDERS, find_section, sections

__all__ = [
  "MEMORY_NAMES", "AnchorsConfig", "CacheConfig", "Config", "DataConfig", "EvalConfig", "MeshConfig", "ModelConfig",
  "OptimizerConfig", "RecallConfig", "TrainConfig", "used_leaves"]

MEMORY_NAMES = tuple(FOLDERS)


@dataclass(frozen=True)
class _DecoderConfig:
  """The decoder: `layers` blocks that repeat `pattern`, each entry the name of a memory in the registry."""

  vocab: int = positive(259, "tokens that the model knows")
  dim: int = positive(128, "width of the residual stream")
  layers: int = positive(4, "blocks; a multiple of the pattern's length")
  pattern: tuple[str, ...] = names(("vq",), "the memory of each block, repeated", allowed=MEMORY_NAMES, fewest=1)
  block: str = choice("gau", ("gau", "mlp"), "gau: memory with gate, no MLP; mlp: memory then MLP")
  mlp_dim: int = positive(512, "of the block \"mlp\"")
  mlp: str = choice("swiglu", ("swiglu", "squared_relu"), "of the block \"mlp\"")
  norm_gain: bool = switch(True, "whether norms have a learned scale")
  norm_bias: bool = switch(False, "whether norms have a learned bias")
  norm_eps: float = positive(1e-6, "of the blocks' norms and the final one")
  position_wavelength: float = at_least(
    0, 0.0, "longest of the sinusoids of the position that are added to embeddings by a learned factor, 0 at first; "
    "0 = none")
  tied_embeddings: bool = switch(False, "the head is the embedding")
  head_bias: bool = switch(True, "of a head of its own")
  tied_bias: bool = switch(False, "of a head that is the embedding")
  float32_head: bool = switch(False, "logits are products of float32, whatever dtype says")
  final_norm: bool = switch(True, "before the head")
  logit_scale: float = positive(1.0, "factor of the logits, bias included")
  dropout: float = fraction(0.0, "on each residual branch")
  layer_drop: float = fraction(0.0, "a whole branch, per sequence")
  dtype: str = choice(
    "float32", ("float32", "bfloat16"), "of activations; parameters, states' accumulators and the loss are float32")
  remat: str = free(choice(
    "none", ("none", "full", "boundary"),
    "full: recompute all; boundary: all but what softmax attention's backward needs"))
  scan_layers: bool = switch(True, "layers as one array and one compiled body")
  xent_chunk: int = free(positive(4096, "tokens of a device whose logits exist at one time"))
  impl: str = free(choice(
    "auto", ("auto", "reference", "xla", "pallas", "interpret"), "of all ops; auto: by backend and shape"))
  context_len: int = at_least(0, 0, "tokens that a pretrained model was made to read; 0 = no bound of its own")
  origin: str = choice(
    "config", ("config", "init_from"), "config: the model is this section; init_from: it is that of --init_from")
  cache: CacheConfig = section(CacheConfig, "what \"attention\" keeps of the tokens it has read")


# The sections of memories are fields too: their folders say which there are.
ModelConfig = dataclasses.make_dataclass(
  "ModelConfig", [(part.name, part.config, section(part.config, part.doc)) for part in sections()],
  bases=(_DecoderConfig,), frozen=True, namespace={"__doc__": _DecoderConfig.__doc__, "__module__": __name__})


@dataclass(frozen=True)
class RecallConfig:
  """Associative recall: documents of data.seq_len tokens, pairs of key and value first, then queries."""

  pairs: int = positive(64, "at most, in a document")
  fewest_pairs: int = positive(4, "documents have pairs, pairs/2, pairs/4 … of them, down to so many")
  power: float = positive(
    0.01, "a query is g places behind the pairs with odds (g + 1)^(power − 1), as in Zoology; 1 = anywhere")


@dataclass(frozen=True)
class AnchorsConfig:
  """Which tokens close a segment and stay in its place, in training, evaluation and generation alike."""

  rule: str = text(
    "none", "none; punctuation; line: line ends; every:N: each N-th token of a document; ids:N,N; token:TEXT: the "
    "tokenizer's token of this text")
  characters: str = text(".?!", "of the rule punctuation: those that end a segment")
  random_every: int = at_least(
    0, 0, "each training sequence is marked every so many tokens, a number drawn from 2 to this one, instead of by the "
    "rule; 0 = off")
  dropout: float = fraction(0.0, "share of the anchors of training that are not marked")
  causal_share: float = within(0, 1, 0.0, "share of the training sequences in which nothing is marked")
  repeat_share: float = within(
    0, 1, 0.0, "share of the training sequences whose second half is their first half again, which a model must then "
    "write from its anchors (autoencoding)")
  insert: str = text(
    "none", "where texts get the added token <AC>, which the rule token:<AC> marks: none; sentence: behind each; "
    "every:N: behind so many tokens; never inside a word")
  copies: int = positive(
    1, "<AC> in each such place; by the rule token:<AC> the last of so many in a row ends the segment, and those "
    "before it are protected")
  start: str = text(
    "mean", "row of <AC> in a pretrained model that lacks it: mean of all rows, or a copy of the row of the token with "
    "this text")


@dataclass(frozen=True)
class DataConfig:
  """Which tokens, in which rows. A sequence is `seq_len` tokens, an update `update_len` of them."""

  source: str = text(
    "enwiki_sample", "enwik8, pg19, imagenet64; their shipped samples enwiki_sample, books_sample, photos_sample; "
    "synthetic, recall; text:PATH for one's own file or folder of texts")
  path: str = free(place("data", "folder of prepared data sets; samples and synthetic need none"))
  tokenizer: str = text("bytes", "bytes, bpe_lossless:VOCAB, bpe_paper:VOCAB, symbols:VOCAB or pretrained:MODEL")
  seq_len: int = positive(512, "tokens of a sequence, over which memory is carried")
  update_len: int = positive(512, "tokens of a row that an update takes; a divisor of seq_len")
  batch: int = positive(16, "rows of one update over all devices")
  rows: str = choice(
    "sequences", ("sequences", "documents", "packed"),
    "sequences: pieces of seq_len tokens; documents: rows follow documents; packed: documents one behind another")
  seed: int = seed(0, "of the order of the data")
  workers: int = free(at_least(0, 0, "Grain reader processes; threads in this process when 0"))
  recall: RecallConfig = section(RecallConfig, "the source \"recall\"")
  anchors: AnchorsConfig = section(AnchorsConfig, "which tokens are anchors")


@dataclass(frozen=True)
class OptimizerConfig:
  """The update rule; `learning_rate` is the peak of the schedule."""

  name: str = choice(
    "adamw", ("adamw", "lion", "adafactor"),
    "adafactor: no momentum, clips by itself, its rate is relative to the parameter")
  learning_rate: float = positive(1e-3, "at the schedule's peak")
  warmup_steps: int = at_least(0, 100, "updates of the linear rise from 0")
  schedule: str = choice("cosine", ("cosine", "linear", "constant"), "after the warm-up")
  zero_start: bool = switch(
    False, "the first update has rate 0; else it has the first above 0, and the last the final one")
  final_fraction: float = within(0, 1, 0.1, "of the peak, at the last step")
  b1: float = fraction(0.9, "as b2, of AdamW and Lion")
  b2: float = fraction(0.98, "of the slower average")
  eps: float = positive(1e-9, "of AdamW")
  weight_decay: float = at_least(0, 0.0, "of matrices")
  decay: str = choice(
    "scaled", ("scaled", "independent"),
    "scaled: times the learning rate; independent: p ← p − weight_decay·p, as in Transformer-VQ")
  clip_norm: float = at_least(0, 1.0, "of the whole gradient; 0 = off")
  last_layers: int = at_least(
    0, 0, "layers at the end that learn, and the final norm; all else stays. For it the pattern names every layer. "
    "0 = everything learns")


@dataclass(frozen=True)
class TrainConfig:
  """How long, how often, and what is kept."""

  steps: int = positive(1000, "optimizer updates")
  seed: int = seed(0, "of parameters, dropout and codebooks")
  accumulate: int = positive(1, "micro-batches per update; a divisor of data.batch")
  steps_per_dispatch: int = positive(1, "updates inside one compiled call; changes speed only")
  log_every: int = positive(10, "updates between progress lines; metrics.jsonl has every update")
  eval_every: int = at_least(0, 0, "updates between evaluations; 0 = only at the end")
  save_every: int = positive(500, "updates between checkpoints")
  keep_last: int = positive(2, "newest checkpoints that stay")
  keep_best: int = at_least(0, 1, "best checkpoints that stay, by bits per byte")
  nan_skips: int = at_least(0, 0, "updates with a non-finite loss that may be skipped before the run stops")
  writers: tuple[str, ...] = names(("stdout", "jsonl"), "where metrics go: stdout, jsonl, tensorboard, wandb")


@dataclass(frozen=True)
class EvalConfig:
  """What evaluation reads, and how."""

  split: str = choice("validation", ("train", "validation", "test"), "what is read")
  protocol: str = choice(
    "cold", ("cold", "carried", "both"),
    "cold: windows, each from an empty memory; carried: whole documents, memory running on")
  batch: int = positive(16, "rows; the result does not depend on it")
  seq_len: int = at_least(0, 0, "tokens of a window; 0 = data.seq_len")
  chunk_len: int = at_least(0, 0, "tokens per call, memory carried between; 0 = the whole window")
  max_batches: int = at_least(0, 0, "0 = the whole split")


@dataclass(frozen=True)
class MeshConfig:
  """Devices: `data` × `seq` × `model`."""

  data: int = positive(-1, "devices that share the rows; -1 = what is left", also=(-1,))
  seq: int = positive(1, "devices that share the tokens of each row; a divisor of data.update_len")
  model: int = positive(1, "devices that share each layer")
  fsdp: bool = switch(True, "shard each parameter's `embed` axis over `data`")
  rules: tuple[tuple[str, str], ...] = pairs(
    (("heads", "model"), ("value", "model"), ("mlp", "model"), ("vocab", "model")),
    "logical axes of parameters and the mesh axis of each")


@dataclass(frozen=True)
class Config:
  """An experiment."""

  name: str = text("run", "of the experiment, in logs and plots")
  model: ModelConfig = section(ModelConfig, "the decoder")
  data: DataConfig = section(DataConfig, "which tokens, in which rows")
  optimizer: OptimizerConfig = section(OptimizerConfig, "the update rule")
  train: TrainConfig = section(TrainConfig, "how long, how often, and what is kept")
  eval: EvalConfig = section(EvalConfig, "what evaluation reads, and how")
  mesh: MeshConfig = section(MeshConfig, "devices")


def used_leaves(config: Config) -> Iterator[tuple[str, dataclasses.Field, Any]]:
  """`leaves` without the sections of memories that the model lacks, and of a cache that drops nothing."""
  used = {find_section(name).name for name in config.model.pattern}
  unused = tuple(f"model.{part.name}." for part in sections() if part.name not in used)
  if config.model.cache.policy == "full":
    unused += ("model.cache.",)
  return (leaf for leaf in leaves(config) if not leaf[0].startswith(unused))
