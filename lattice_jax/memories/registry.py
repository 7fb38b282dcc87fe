"""The memories a model's pattern may name. Adding one is a row here and a row in the law tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.memories.gated_linear.layer import (
  GLA,
  DeltaNet,
  GatedDeltaNet,
  GatedSlots,
  LinearAttention,
  ScalarDecay,
  TTTLinear,
)
from lattice_jax.memories.lattice.layer import Lattice
from lattice_jax.memories.recurrent import RecurrentMemory
from lattice_jax.memories.softmax.layer import SoftmaxAttention
from lattice_jax.memories.vq.layer import VQAttention, update_codebook


@dataclass(frozen=True)
class Memory:
  """One row of the registry: how to build a memory layer, and what the rest of the code must know of it.

  make: (model, name=None) → the layer, an `nn.Module` with `init_state(batch, max_len=0)` and
    `__call__(x_BTD, state, segment, *, train) -> LayerOutput`.
  check: raises ValueError where the model config cannot be built.
  block_field: the config field that holds the tokens of its block; training lengths must be a multiple of them, the
    layer itself takes any length. None where it has no block.
  visible: (model, query, key) → whether the output at `query` may depend on the input at `key` within a document.
  update_buffers: (model, buffers, statistics, rng) → buffers after an optimizer step, for one layer.
  needs_token_cache: whether the state must be given a `max_len` to remember what went before the call.
  """

  make: Callable[..., nn.Module]
  check: Callable[[ModelConfig], None]
  block_field: str | None
  visible: Callable[[ModelConfig, int, int], bool]
  update_buffers: Callable[[ModelConfig, Any, Any, jax.Array], Any]
  needs_token_cache: bool


def recurrent(
  layer: type[RecurrentMemory], check: Callable[[ModelConfig], None] = lambda model: None) -> Memory:
  """The row of a recurrent memory: it sees its whole document, any length of it, and has no buffers."""
  return Memory(
    make=lambda model, name=None: layer(model, name=name),
    check=check,
    block_field=None,
    visible=lambda model, query, key: key <= query,
    update_buffers=_keep_buffers,
    needs_token_cache=False,
  )


def _keep_buffers(model: ModelConfig, buffers: Any, statistics: Any, rng: jax.Array) -> Any:
  del model, statistics, rng
  return buffers


def _check_heads(section: str, heads: int, kv_heads: int) -> None:
  if heads % kv_heads:
    raise ValueError(f"{section}.heads={heads} must be a multiple of {section}.kv_heads={kv_heads}.")


def _check_attention(model: ModelConfig) -> None:
  _check_heads("model.attention", model.attention.heads, model.attention.kv_heads)
  if model.attention.rope_theta and model.attention.key_dim % 2:
    raise ValueError(
      f"model.attention.key_dim={model.attention.key_dim} must be even for the rotary embedding; "
      f"use {model.attention.key_dim + 1}, or model.attention.rope_theta=0.")
  scaling = model.attention.rope_scaling
  for slow, fast in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
    if not getattr(scaling, slow) < getattr(scaling, fast):
      raise ValueError(
        f"model.attention.rope_scaling.{slow}={getattr(scaling, slow)} must be below {fast}="
        f"{getattr(scaling, fast)}.")
  if scaling.kind == "yarn" and 0 < model.attention.rope_theta <= 1:
    raise ValueError(
      f"model.attention.rope_theta={model.attention.rope_theta} must be above 1 for rope_scaling.kind='yarn', which "
      "counts turns by its logarithm.")


def _check_window(model: ModelConfig) -> None:
  _check_attention(model)
  if model.attention.window < 1:
    raise ValueError(
      f"the memory 'window' needs model.attention.window ≥ 1, not {model.attention.window}; "
      "set a window, or use the memory 'attention'.")


def _check_vq(model: ModelConfig) -> None:
  _check_heads("model.vq", model.vq.heads, model.vq.kv_heads)
  if model.dim % 2:
    raise ValueError(f"model.dim={model.dim} must be even: the position sinusoids of 'vq' have model.dim columns.")


def _check_lattice(model: ModelConfig) -> None:
  lattice = model.lattice
  if lattice.objective == "encoding" and not lattice.unit_values:
    raise ValueError(
      "model.lattice.objective='encoding' is unstable for long values; set model.lattice.unit_values=True.")
  if lattice.state == "accumulated" and lattice.form != "scan":
    raise ValueError(
      f"model.lattice.form={lattice.form!r} needs slots of length one, not model.lattice.state='accumulated'; "
      "use state='retracted', or form='scan'.")
  # The gate may halve a slot, which doubles the step.
  times = 2 if lattice.forget else 1
  longest, given = lattice.max_step * times, f"max_step={lattice.max_step} and forget={lattice.forget}"
  if longest > 2:
    raise ValueError(
      f"model.lattice: {given} allow steps of {longest:g}, which overshoot without end; use max_step={2 / times}.")
  if lattice.form == "parallel" and longest > 1:
    raise ValueError(
      f"model.lattice.form='parallel' is exact for steps of at most 1, and {given} allow {longest:g}; "
      f"use max_step={1 / times}, or form='scan'.")


def _check_ttt(model: ModelConfig) -> None:
  if model.baseline.value_dim % 2:
    raise ValueError(
      f"model.baseline.value_dim={model.baseline.value_dim} must be even for the rotary embedding of 'ttt_linear'; "
      f"use {model.baseline.value_dim + 1}.")


MEMORIES: dict[str, Memory] = {
  "attention": Memory(
    make=lambda model, name=None: SoftmaxAttention(model, window=0, name=name),
    check=_check_attention,
    block_field=None,
    visible=lambda model, query, key: make_policy(model.cache).sees(query, key),
    update_buffers=_keep_buffers,
    needs_token_cache=True,
  ),
  "window": Memory(
    make=lambda model, name=None: SoftmaxAttention(model, window=model.attention.window, name=name),
    check=_check_window,
    block_field=None,
    visible=lambda model, query, key: query - model.attention.window < key <= query,
    update_buffers=_keep_buffers,
    needs_token_cache=False,
  ),
  "vq": Memory(
    make=lambda model, name=None: VQAttention(model, name=name),
    check=_check_vq,
    block_field="model.vq.block_len",
    visible=lambda model, query, key: key <= query and (model.vq.cache or query - key <= model.vq.reach),
    update_buffers=update_codebook,
    needs_token_cache=False,
  ),
  "lattice": recurrent(Lattice, _check_lattice),
  "linear": recurrent(LinearAttention),
  "scalar_decay": recurrent(ScalarDecay),
  "gla": recurrent(GLA),
  "deltanet": recurrent(DeltaNet),
  "gated_deltanet": recurrent(GatedDeltaNet),
  "gated_slots": recurrent(GatedSlots),
  "ttt_linear": recurrent(TTTLinear, _check_ttt),
}
