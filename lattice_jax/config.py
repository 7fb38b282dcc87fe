"""The config as frozen dataclasses. A default lives here and nowhere else.

`config_checks.py` turns these into the locked ConfigDict that files under `configs/` edit, and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeScalingConfig:
  """How the rotary frequencies of a model that was stretched to longer texts differ; as Llama-family configs say it."""

  kind: str = "none"  # none | linear: all divided by factor | llama3, yarn: slow ones divided, fast ones kept
  factor: float = 1.0
  original_len: int = 8192  # context before stretching; by it turns and wavelengths are called fast or slow
  low_freq_factor: float = 1.0  # llama3: wavelengths above original_len / low_freq_factor are slow
  high_freq_factor: float = 4.0  # llama3: wavelengths below original_len / high_freq_factor are fast
  beta_fast: float = 32.0  # yarn: more turns over original_len than this are fast
  beta_slow: float = 1.0  # yarn: fewer turns are slow
  gain: float = 1.0  # yarn: of rotated queries and keys


@dataclass(frozen=True)
class AttentionConfig:
  """Softmax attention. `key_dim` and `value_dim` are per head; `heads` must be a multiple of `kv_heads`."""

  heads: int = 4
  kv_heads: int = 4
  key_dim: int = 32
  value_dim: int = 32
  window: int = 0  # tokens a query sees, itself included; used by the pattern entry "window", 0 elsewhere
  rope_theta: float = 10_000.0  # 0 = no rotary embedding
  rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
  bias: str = "none"  # none | qkv: of queries, keys and values | all: of the output projection too
  qk_norm: bool = False  # RMS-normalise queries and keys, as VQ does
  gated: bool = False  # value SiLU and output gate: the attention of a gated attention unit


@dataclass(frozen=True)
class VQConfig:
  """Transformer-VQ attention (arXiv 2309.16354). `key_dim` and `value_dim` are per head."""

  heads: int = 1
  kv_heads: int = 1  # one codebook per key/value head
  key_dim: int = 128
  value_dim: int = 1536
  codes: int = 512  # S of the paper
  block_len: int = 512  # L of the paper: queries read at a time; changes cost, not results
  window: int = 0  # uncompressed tokens and reach of the position bias; 0 = block_len, as in the paper
  reduction: str = "auto"  # auto | serial | matmul | associative | input_scan: how blocks get their caches; cost only
  gated: bool = True  # SHGA: value SiLU and output gate
  cache: bool = True  # False masks the compressive cache; the window stays
  commit_weight: float = 1e-4
  ema_rate: float = 0.99
  data_start: bool = False  # the first update's keys replace the random codebook; not in the paper
  near_start: float = 0.0  # start of a learned score for all of the window; 0 = none, as in the paper
  revive_below: float = 0.0  # codes used less than this share of the average restart; 0 = never, as in the paper
  max_wavelength: float = 1e5
  sinusoid_dropout: float = 0.0

  @property
  def reach(self) -> int:
    """Tokens of the window."""
    return self.window or self.block_len


@dataclass(frozen=True)
class RecurrentConfig:
  """What the recurrent memories share. `value_dim` is per head."""

  heads: int = 4
  value_dim: int = 32
  conv_width: int = 4  # taps of the causal convolutions over queries, keys and values; 0 = none
  gated: bool = True  # SiLU gate on the output


@dataclass(frozen=True)
class LatticeConfig(RecurrentConfig):
  """Lattice (arXiv 2504.05646): `slots` unit vectors a head, also the width of queries and keys."""

  slots: int = 32  # m of the paper
  objective: str = "decoding"  # decoding | encoding | similarity: the loss of which a token takes one gradient step
  state: str = "retracted"  # retracted: slots keep length one | accumulated: lengths grow, which slows slots down
  projected: bool = True  # False writes what lies along a slot too: no longer the gradient, an ablation
  max_step: float = 1.0  # of the gradient step, whose share of it each token and head chooses
  forget: bool = False  # a gate that each token and head takes off the slots before the step
  unit_values: bool = True  # values of length one, as queries and keys
  form: str = "scan"  # scan | parallel: exact | live | frozen | additive: from the slots at a chunk's start
  chunk_len: int = 16  # of the forms other than scan
  rounds: int = 16  # of "parallel", at most
  tolerance: float = 1e-6  # of "parallel": rounds end once they change less; 0 runs them all


@dataclass(frozen=True)
class BaselineConfig(RecurrentConfig):
  """The recurrences that Lattice is compared with, linear to ttt_linear.

  A head's state is key_dim × value_dim; of gated_slots slots × (key_dim + value_dim), of ttt_linear
  value_dim × (value_dim + 1), and as much again for the open mini-batch.
  """

  key_dim: int = 32  # of queries and keys; of ttt_linear they are as wide as values
  slots: int = 16  # of gated_slots
  chunk_len: int = 16  # tokens taken at a time; changes cost, not results. On matrix units 64 without channel decays
  gate_rank: int = 16  # of the projection that makes the decays of gla
  max_step: float = 1.0  # of the delta rule, whose share of it each token and head chooses; at most 2
  mini_batch: int = 16  # tokens of ttt_linear whose gradients are taken at the same weights
  inner_rate: float = 1.0  # of ttt_linear: steps are at most this over value_dim


@dataclass(frozen=True)
class CacheConfig:
  """What the memory "attention" keeps of the tokens it has read (lattice_jax/cache).

  Policies other than full and window keep the first `sinks` tokens, `keep` of every partition of `lag` tokens once the
  next partition is complete, and all later tokens; h2o, snapkv and tova as many, chosen from all such partitions
  together (docs/cache_policies.md). Their budget is one of `keep`, `ratio` and `tokens`; with `budget`
  "memory" it is what partitions keep on average at most, with "drift" it may be left out (lattice_jax/cache/online.py).
  """

  policy: str = "full"  # full | window | lagkv | local | knorm | keydiff | random | h2o | snapkv | tova
  sinks: int = 16  # first tokens of a document, which are never dropped
  window: int = 0  # of "window": tokens a query sees beside the sinks, itself included
  lag: int = 128
  keep: int = 0  # tokens of a partition for each key/value head
  ratio: float = 0.0  # keep as a part of lag
  tokens: int = 0  # all that is kept: of "window" at any time, else of a document of text_len tokens
  text_len: int = 0
  skip_layers: int = 0  # first layers (of each block of the pattern) that keep every token; all have room for as many
  budget: str = "fixed"  # fixed | memory | drift: of every partition alike, or as it needs to hold one or the other
  drift: float = 0.0  # of the budget "drift": part of a partition's deviation that may be dropped at most
  call_len: int = 0  # tokens of a call at most, for which the cache then has room; 0 = room for whole documents
  observe: int = 32  # of "snapkv": last queries, whose attention is the score
  pool: int = 7  # of "snapkv": neighbouring slots that share a score
  value_weight: float = 1.0  # of the values' score in "lagkv" and "local", beside the keys'
  epsilon: float = 1e-6  # of "lagkv" and "local": least range of a channel
  seed: int = 0  # of "random"
  records: tuple[str, ...] = ()  # mass, queries: what "full" notes for other policies that go on from its tokens


@dataclass(frozen=True)
class ModelConfig:
  """The decoder: `layers` blocks that repeat `pattern`, each entry the name of a memory in the registry."""

  vocab: int = 259
  dim: int = 128
  layers: int = 4
  pattern: tuple[str, ...] = ("vq",)
  block: str = "gau"  # gau: memory with gate, no MLP; mlp: memory then MLP
  mlp_dim: int = 512
  mlp: str = "swiglu"
  norm_gain: bool = True
  norm_eps: float = 1e-6  # of the blocks' norms and the final one
  tied_embeddings: bool = False  # the head is the embedding and has no bias
  head_bias: bool = True
  final_norm: bool = True
  logit_scale: float = 1.0
  dropout: float = 0.0  # on each residual branch
  layer_drop: float = 0.0  # a whole branch, per sequence
  dtype: str = "float32"  # of activations; parameters, states' accumulators and the loss are float32
  remat: str = "none"  # none | full | boundary: recompute all, or all but what softmax attention's backward needs
  scan_layers: bool = True
  xent_chunk: int = 4096  # tokens whose logits exist at one time
  impl: str = "auto"
  attention: AttentionConfig = field(default_factory=AttentionConfig)
  cache: CacheConfig = field(default_factory=CacheConfig)
  vq: VQConfig = field(default_factory=VQConfig)
  lattice: LatticeConfig = field(default_factory=LatticeConfig)
  baseline: BaselineConfig = field(default_factory=BaselineConfig)


@dataclass(frozen=True)
class RecallConfig:
  """Associative recall: documents of data.seq_len tokens, pairs of key and value first, then queries."""

  pairs: int = 64  # at most, in a document
  fewest_pairs: int = 4  # documents have pairs, pairs/2, pairs/4 … of them, down to so many
  power: float = 0.01  # a query is g places behind the pairs with odds (g + 1)^(power − 1), as in Zoology; 1 = anywhere


@dataclass(frozen=True)
class DataConfig:
  """Which tokens, in which rows. A sequence is `seq_len` tokens, an update `update_len` of them."""

  source: str = "enwiki_sample"
  path: str = "data"  # folder of prepared data sets; samples and synthetic need none
  tokenizer: str = "bytes"
  seq_len: int = 512
  update_len: int = 512
  batch: int = 16  # rows of one update over all devices
  rows: str = "sequences"  # sequences | documents | packed
  seed: int = 0
  workers: int = 0  # Grain reader processes; threads in this process when 0
  recall: RecallConfig = field(default_factory=RecallConfig)  # of the source "recall"


@dataclass(frozen=True)
class OptimizerConfig:
  """The update rule; `learning_rate` is the peak of the schedule."""

  name: str = "adamw"  # adamw | lion | adafactor: no momentum, clips by itself, its rate is relative to the parameter
  learning_rate: float = 1e-3
  warmup_steps: int = 100
  schedule: str = "cosine"  # cosine | linear | constant, after linear warm-up from 0
  final_fraction: float = 0.1  # of the peak, at the last step
  b1: float = 0.9  # as b2, of AdamW and Lion
  b2: float = 0.98
  eps: float = 1e-9  # of AdamW
  weight_decay: float = 0.0
  decay: str = "scaled"  # scaled: times the learning rate; independent: p ← p − weight_decay·p, as in Transformer-VQ
  clip_norm: float = 1.0  # of the whole gradient; 0 = off


@dataclass(frozen=True)
class TrainConfig:
  steps: int = 1000  # optimizer updates
  seed: int = 0
  accumulate: int = 1  # micro-batches per update
  steps_per_dispatch: int = 1  # updates inside one compiled call; changes speed only
  log_every: int = 10  # updates between progress lines; metrics.jsonl has every update
  eval_every: int = 0  # 0 = only at the end
  save_every: int = 500
  keep_last: int = 2
  keep_best: int = 1
  nan_skips: int = 0  # updates with a non-finite loss that may be skipped before the run stops
  writers: tuple[str, ...] = ("stdout", "jsonl")  # also tensorboard, wandb


@dataclass(frozen=True)
class EvalConfig:
  split: str = "validation"
  protocol: str = "cold"  # cold | carried | both
  batch: int = 16  # rows; the result does not depend on it
  seq_len: int = 0  # 0 = data.seq_len
  chunk_len: int = 0  # tokens per call, memory carried between; 0 = the whole window
  max_batches: int = 0  # 0 = the whole split


@dataclass(frozen=True)
class MeshConfig:
  """Devices: `data` × `model`; -1 takes what is left. `rules` maps logical axes of parameters to mesh axes."""

  data: int = -1
  model: int = 1
  fsdp: bool = True  # shard each parameter's `embed` axis over `data`
  rules: tuple[tuple[str, str], ...] = (
    ("heads", "model"), ("value", "model"), ("mlp", "model"), ("vocab", "model"))


@dataclass(frozen=True)
class Config:
  name: str = "run"
  model: ModelConfig = field(default_factory=ModelConfig)
  data: DataConfig = field(default_factory=DataConfig)
  optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
  train: TrainConfig = field(default_factory=TrainConfig)
  eval: EvalConfig = field(default_factory=EvalConfig)
  mesh: MeshConfig = field(default_factory=MeshConfig)
