"""A decoder small enough to compile at once, with every feature that training has to serve, and configs for it."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax import config as configs
from lattice_jax.data.loader import train_batches
from lattice_jax.data.sources import load_source
from lattice_jax.evaluation import compiled
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models import decoder
from lattice_jax.sharding import make_mesh
from lattice_jax.training import state as training_state
from lattice_jax.training.feed import fetch
from lattice_jax.training.state import create_state, make_optimizer
from lattice_jax.training.step import make_program


@flax.struct.dataclass
class TinyState:
  mean_BD: jax.Array  # of the embeddings so far


class TinyDecoder(nn.Module):
  """Predicts from the token and the running mean of those before; has a loss, a metric and statistics of its own."""

  config: configs.ModelConfig

  @nn.compact
  def score(self, tokens_BT, targets_BT, state, segment, *, train=False):
    init = nn.with_logical_partitioning(nn.initializers.normal(0.1), ("vocab", "embed"))
    embedding_AD = self.param("embedding", init, (self.config.vocab, self.config.dim))
    gain = nn.with_logical_partitioning(nn.initializers.ones, ("layers", "embed"))
    gain_LD = self.param("gain", gain, (2, self.config.dim))
    usage_A = self.variable("buffers", "usage_A", jnp.zeros, (self.config.vocab,))
    x_BTD = embedding_AD[tokens_BT] * gain_LD[0]
    x_BTD = nn.Dropout(self.config.dropout, deterministic=not train)(x_BTD + state.mean_BD[:, None] * gain_LD[1])
    nll_BT = -jnp.take_along_axis(
      jax.nn.log_softmax(x_BTD @ embedding_AD.T - usage_A.value), targets_BT[..., None], axis=-1)[..., 0]
    size = jnp.abs(x_BTD).sum(), jnp.asarray(x_BTD.size, jnp.float32)
    counts_A = jnp.zeros((self.config.vocab,)).at[tokens_BT].add(1.0)
    return nll_BT, decoder.DecoderOutput(
      features_BTD=x_BTD, state=TinyState(0.5 * state.mean_BD + 0.5 * x_BTD.mean(1)), losses={"size": size},
      metrics={"tokens": (segment.valid_BT.sum(), jnp.asarray(1.0))}, statistics={"usage_A": counts_A})


def _init_variables(config, rng):
  zeros_BT, state = jnp.zeros((1, 1), jnp.int32), _init_state(config, 1)
  segment = decoder.whole_segment(1, 1)
  return TinyDecoder(config).init(rng, zeros_BT, zeros_BT, state, segment, method=TinyDecoder.score)


def _init_state(config, batch, max_len=0):
  del max_len
  return TinyState(jnp.zeros((batch, config.dim)))


def _update_buffers(config, buffers, statistics, rng):
  noise = 1e-3 * jax.random.normal(rng, (config.vocab,))
  return jax.tree.map(lambda old, new: 0.9 * old + 1e-4 * new + noise, buffers, statistics)


def use_tiny_decoder(monkeypatch):
  """Puts the tiny decoder in the place of the real one for training and evaluation."""
  monkeypatch.setattr(training_state, "_boxed_shapes", training_state._boxed_shapes.__wrapped__)
  monkeypatch.setattr(compiled, "Decoder", TinyDecoder)
  monkeypatch.setattr(compiled, "init_state", _init_state)
  for name, value in {
      "Decoder": TinyDecoder, "init_variables": _init_variables, "init_state": _init_state,
      "update_buffers": _update_buffers}.items():
    monkeypatch.setattr(decoder, name, value)


def make_config(**changes):
  """A config of twelve updates that carries memory; changes are written `section__field=value`."""
  config = configs.Config(
    model=configs.ModelConfig(
      dim=16, layers=2, xent_chunk=64, vq=VQConfig(key_dim=8, value_dim=16, codes=8, block_len=8)),
    data=configs.DataConfig(source="synthetic", seq_len=32, update_len=16, batch=8),
    optimizer=configs.OptimizerConfig(warmup_steps=2, weight_decay=0.01),
    train=configs.TrainConfig(steps=12, save_every=5, log_every=4, writers=("jsonl",)),
    eval=configs.EvalConfig(max_batches=1))
  for path, value in changes.items():
    section, field = path.split("__")
    config = dataclasses.replace(
      config, **{section: dataclasses.replace(getattr(config, section), **{field: value})})
  return config


def run_updates(config, steps, *, state=None, first_step=0, devices=None):
  """(state, metrics of every update) after `steps` updates on the first of the devices, or on those given."""
  mesh = make_mesh(config.mesh, devices or jax.devices()[:1])
  source = load_source(config.data, "train")
  with jax.set_mesh(mesh):
    state = create_state(config, mesh) if state is None else state
    program = make_program(config, make_optimizer(config), mesh, state)
    batches, metrics = train_batches(config, source, start_step=first_step), []
    for step in range(first_step, first_step + steps, config.train.steps_per_dispatch):
      count = min(config.train.steps_per_dispatch, first_step + steps - step)
      feed = fetch(batches, config, mesh, first_step=step, count=count)
      state, new = program(state, feed.batches, np.int32(step), np.int32(count))
      metrics += [{name: float(values[i]) for name, values in new.items()} for i in range(count)]
  return state, metrics


def assert_same_bits(tree, expected):
  """Every array equal, bit for bit, wherever it lies."""
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    other = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(other), err_msg=jax.tree_util.keystr(path))
