"""The sections of `config.ModelConfig` that describe memories.

Names that a field may have stand here where the code that answers to them lies above the config; tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from lattice_jax.fields import (
  at_least,
  choice,
  finite,
  fraction,
  positive,
  section,
  switch,
  within,
)

KEY_GRADIENTS = ("window", "blocks")
REDUCTIONS = ("auto", "serial", "matmul", "associative", "input_scan")
OBJECTIVES = ("decoding", "encoding", "similarity")
STATES = ("retracted", "accumulated")
FORMS = ("scan", "parallel", "live", "frozen", "additive")


@dataclass(frozen=True)
class RopeScalingConfig:
  """How the rotary frequencies of a model that was stretched to longer texts differ; as Llama-family configs say it."""

  kind: str = choice(
    "none", ("none", "linear", "llama3", "yarn"),
    "linear: all frequencies divided by factor; llama3, yarn: slow ones divided, fast ones kept")
  factor: float = positive(1.0, "how much longer texts may be")
  original_len: int = positive(
    8192, "context before stretching; by it turns and wavelengths are called fast or slow")
  low_freq_factor: float = positive(1.0, "llama3: wavelengths above original_len / low_freq_factor are slow")
  high_freq_factor: float = positive(4.0, "llama3: wavelengths below original_len / high_freq_factor are fast")
  beta_fast: float = positive(32.0, "yarn: more turns over original_len than this are fast")
  beta_slow: float = positive(1.0, "yarn: fewer turns are slow")
  truncate: bool = switch(True, "yarn: both ends of the rise are whole pairs, rounded outwards")
  gain: float = positive(1.0, "yarn: of rotated queries and keys")


@dataclass(frozen=True)
class AttentionConfig:
  """Softmax attention. `key_dim` and `value_dim` are per head; `heads` must be a multiple of `kv_heads`."""

  heads: int = positive(4, "of queries")
  kv_heads: int = positive(4, "of keys and values")
  key_dim: int = positive(32, "of a head's queries and keys")
  value_dim: int = positive(32, "of a head's values")
  window: int = at_least(
    0, 0, "tokens a query sees, itself included; used by the pattern entry \"window\", 0 elsewhere")
  rope_theta: float = at_least(0, 10_000.0, "base of the rotary embedding; 0 = none")
  rope_scaling: RopeScalingConfig = section(RopeScalingConfig, "rotary frequencies of a model made for longer texts")
  bias: str = choice(
    "none", ("none", "qkv", "all"), "qkv: of queries, keys and values; all: of the output projection too")
  qk_norm: bool = switch(False, "RMS-normalise queries and keys, as VQ does")
  gated: bool = switch(False, "value SiLU and output gate: the attention of a gated attention unit")


@dataclass(frozen=True)
class VQConfig:
  """Transformer-VQ attention (arXiv 2309.16354). `key_dim` and `value_dim` are per head."""

  heads: int = positive(1, "of queries")
  kv_heads: int = positive(1, "of keys and values; one codebook each")
  key_dim: int = positive(128, "of a head's queries and keys")
  value_dim: int = positive(1536, "of a head's values")
  codes: int = positive(512, "S of the paper")
  block_len: int = positive(512, "L of the paper: queries read at a time; changes cost, not results")
  window: int = at_least(
    0, 0, "uncompressed tokens and reach of the position bias; 0 = block_len, as in the paper")
  reduction: str = choice("auto", REDUCTIONS, "how blocks get their caches; changes cost only")
  gated: bool = switch(True, "SHGA: value SiLU and output gate")
  joined: bool = switch(
    False, "keys, values and gate are one projection: one tensor to Adafactor, the same to other optimizers")
  key_gradient: str = choice(
    "window", KEY_GRADIENTS,
    "window: from all queries in reach; blocks: from those of its own block and while in a block's window")
  stale_rows: bool = switch(False, "keys of the window stay the codebook rows that they were when read")
  cache: bool = switch(True, "False masks the compressive cache; the window stays")
  commit_weight: float = at_least(0, 1e-4, "of the commitment loss")
  ema_rate: float = fraction(0.99, "of the codebook's moving averages: share of the old one that stays")
  data_start: bool = switch(False, "the first update's keys replace the random codebook; not in the paper")
  near_start: float = finite(0.0, "start of a learned score for all of the window; 0 = none, as in the paper")
  revive_below: float = fraction(
    0.0, "codes used less than this share of the average restart; 0 = never, as in the paper")
  max_wavelength: float = positive(1e5, "of the position sinusoids")
  sinusoid_dropout: float = fraction(0.0, "of the position sinusoids")

  @property
  def reach(self) -> int:
    """Tokens of the window."""
    return self.window or self.block_len


@dataclass(frozen=True)
class RecurrentConfig:
  """What the recurrent memories share. `value_dim` is per head."""

  heads: int = positive(4, "each with a state of its own")
  value_dim: int = positive(32, "of a head's values")
  conv_width: int = at_least(0, 4, "taps of the causal convolutions over queries, keys and values; 0 = none")
  gated: bool = switch(True, "SiLU gate on the output")


@dataclass(frozen=True)
class LatticeConfig(RecurrentConfig):
  """Lattice (arXiv 2504.05646): `slots` unit vectors a head, also the width of queries and keys."""

  slots: int = positive(32, "m of the paper")
  objective: str = choice("decoding", OBJECTIVES, "the loss of which a token takes one gradient step")
  state: str = choice(
    "retracted", STATES, "retracted: slots keep length one; accumulated: lengths grow, which slows slots down")
  projected: bool = switch(True, "False writes what lies along a slot too: no longer the gradient, an ablation")
  max_step: float = positive(
    1.0, "of the gradient step, whose share of it each token and head chooses; 2 at most, 1 with forget")
  forget: bool = switch(False, "a gate that each token and head takes off the slots before the step")
  unit_values: bool = switch(True, "values of length one, as queries and keys")
  form: str = choice(
    "scan", FORMS, "scan, parallel: exact; live, frozen, additive: steps from the slots at a chunk's start")
  chunk_len: int = positive(16, "of the forms other than scan")
  rounds: int = at_least(0, 16, "of \"parallel\", at most")
  tolerance: float = at_least(0, 1e-6, "of \"parallel\": rounds end once they change less; 0 runs them all")


@dataclass(frozen=True)
class BaselineConfig(RecurrentConfig):
  """The recurrences that Lattice is compared with, linear to ttt_linear.

  A head's state is key_dim × value_dim; of gated_slots slots × (key_dim + value_dim), of ttt_linear
  value_dim × (value_dim + 1), and as much again for the open mini-batch.
  """

  key_dim: int = positive(32, "of queries and keys; of ttt_linear they are as wide as values")
  slots: int = positive(16, "of gated_slots")
  chunk_len: int = positive(
    16, "tokens taken at a time; changes cost, not results. On matrix units 64 without channel decays")
  gate_rank: int = positive(16, "of the projection that makes the decays of gla")
  max_step: float = within(
    0, 2, 1.0, "of the delta rule, whose share of it each token and head chooses; beyond 2 it overshoots by more "
    "than it corrects", is_low_open=True)
  mini_batch: int = positive(16, "tokens of ttt_linear whose gradients are taken at the same weights")
  inner_rate: float = positive(1.0, "of ttt_linear: steps are at most this over value_dim")
