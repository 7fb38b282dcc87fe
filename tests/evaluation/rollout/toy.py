"""A tiny model as both arms of a rollout."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.config import CacheConfig, Config, DataConfig, ModelConfig
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.evaluation.rollout.arms import Arm
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import make_mesh, unbox

MODEL = ModelConfig(
  dim=16, layers=2, pattern=("attention",), block="mlp", mlp_dim=16,
  attention=AttentionConfig(heads=2, kv_heads=1, key_dim=8, value_dim=8))
WINDOW = CacheConfig(policy="window", sinks=1, window=WindowConfig(window=5))
TOKENS_T = np.random.default_rng(0).integers(0, MODEL.vocab, 32).astype(np.int32)
PROMPT_LEN = 24


@functools.lru_cache
def variables(scale=3.0):
  """Random parameters; with such a scale the model is sure of what it says."""
  tree = jax.jit(lambda: unbox(init_variables(MODEL, jax.random.key(0))))()
  return jax.tree.map(lambda leaf: scale * leaf, tree)


# the sizes of `evaluation.compare`, which then shares its programs
def arm(cache=MODEL.cache, *, inject=0.0):
  return Arm(dataclasses.replace(MODEL, cache=cache), variables(3.0), max_len=32, chunk_len=128, inject=inject)


def loaded(context_len=192, source="synthetic"):
  config = Config(name="toy", model=MODEL, data=DataConfig(source=source, seq_len=64, update_len=64))
  tree = variables()
  return LoadedModel(
    workdir=Path("nowhere"), config=config, overrides=(), params=tree["params"], buffers=tree.get("buffers") or {},
    step=None, mesh=make_mesh(config.mesh, jax.devices()[:1]), context_len=context_len)
