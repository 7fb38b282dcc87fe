"""What an update descends on, with which random keys, and when it is skipped: by probes in the decoder's place."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.data.loader import train_batches
from lattice_jax.data.sources import load_source
from lattice_jax.models import decoder
from lattice_jax.sharding import make_mesh
from lattice_jax.training.state import create_state, make_optimizer
from lattice_jax.training.step import make_update
from tests.contract.harness import quick_jit
from tests.thorough import further
from tests.training import tiny


class Probe(tiny.TinyDecoder):
  """Writes its two random keys into the memory of its rows."""

  def score(self, tokens_BT, targets_BT, state, segment, *, train=False):
    nll_BT, output = super().score(tokens_BT, targets_BT, state, segment, train=train)
    bits = [jax.random.uniform(self.make_rng(name)) for name in ("dropout", "sequence")]
    return nll_BT, output.replace(state=output.state.replace(mean_BD=output.state.mean_BD.at[:, :2].set(bits)))


class Kinked(tiny.TinyDecoder):
  """A finite loss whose gradient is not."""

  def score(self, tokens_BT, targets_BT, state, segment, *, train=False):
    nll_BT, output = super().score(tokens_BT, targets_BT, state, segment, train=train)
    size, count = output.losses["size"]
    return nll_BT, output.replace(losses={"size": (jnp.sqrt(size - jax.lax.stop_gradient(size)), count)})


def start_of(config):
  return create_state(config, make_mesh(config.mesh, jax.devices()[:1]))


def one_update(config, batch, state=None):
  """(state before, state after, metrics) of one update."""
  state = start_of(config) if state is None else state
  return state, *compiled_update(config, decoder.Decoder)(state, batch)


@functools.cache
def compiled_update(config, decoder_class):
  del decoder_class  # which stands in `decoder` now
  return quick_jit(make_update(config, make_optimizer(config)))


def first_batch(config, step=0):
  return next(train_batches(config, load_source(config.data, "train"), start_step=step))


def with_ragged_weights(batch):
  """Rows have from one target to all."""
  batch_size, length = batch.tokens_BT.shape
  counted = np.arange(length) < 1 + np.arange(batch_size)[:, None] * (length - 1) // (batch_size - 1)
  return dataclasses.replace(batch, weights_BT=counted.astype(np.float32) * np.linspace(0.5, 2, batch_size)[:, None]
                             .astype(np.float32))


def gradient_of(config, batch, state):
  """Of the stated objective, whatever the micro-batches: targets weigh as they say over the whole update."""
  def objective(params):
    memory = state.memory if state.memory != () else decoder.init_state(config.model, len(batch.tokens_BT))
    nll_BT, output = decoder.Decoder(config.model).apply(
      {"params": params, "buffers": state.buffers}, batch.tokens_BT, batch.targets_BT, memory, batch.segment,
      method=decoder.Decoder.score)
    return (nll_BT * batch.weights_BT).sum() / batch.weights_BT.sum() + sum(
      total / count for total, count in output.losses.values())

  batch = jax.tree.map(jnp.asarray, batch)
  return quick_jit(jax.value_and_grad(objective))(state.params)


def assert_descends(config, batch):
  """AdamW's first moment after one update from nothing is the gradient's share 1 − b1."""
  before, after, metrics = one_update(config, batch)
  loss, want = gradient_of(config, batch, before)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want))
  jax.tree.map(lambda mu, grad: np.testing.assert_allclose(
    mu / (1 - config.optimizer.b1), grad, rtol=0, atol=1e-5 * largest), after.opt_state.mu, want)
  total = metrics["loss"] + sum(value for name, value in metrics.items() if name.startswith("aux_"))
  np.testing.assert_allclose(total, loss, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, *further(1, 8)])
def test_targets_weigh_alike_however_many_a_micro_batch_has_and_losses_of_layers_count(parts, monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config = tiny.make_config(train__accumulate=parts, optimizer__clip_norm=0.0, data__update_len=32)
  assert_descends(config, with_ragged_weights(first_batch(config)))


def test_an_update_without_targets_moves_by_the_other_losses_alone(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config = tiny.make_config(data__update_len=32)
  batch = first_batch(config)
  _, after, metrics = one_update(config, dataclasses.replace(batch, weights_BT=np.zeros_like(batch.weights_BT)))
  assert metrics["loss"] == 0 and metrics["skipped"] == 0 and metrics["aux_size"] > 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def keys_of_updates(monkeypatch, updates=4, **changes):
  """[updates, rows, 2]: what the dropout and the sequence key of every row gave; a sequence is two updates."""
  tiny.use_tiny_decoder(monkeypatch)
  monkeypatch.setattr(decoder, "Decoder", Probe)
  config = tiny.make_config(**changes)
  state, keys = None, []
  for step in range(updates):
    _, state, _ = one_update(config, first_batch(config, step), state)
    keys.append(np.asarray(state.memory.mean_BD[:, :2]))
  return np.stack(keys)


def test_every_update_has_a_dropout_key_and_every_sequence_a_sequence_key(monkeypatch):
  dropout_U, sequence_U = keys_of_updates(monkeypatch)[:, 0].T
  assert len(set(dropout_U)) == 4
  assert sequence_U[0] == sequence_U[1] != sequence_U[2] == sequence_U[3]
  assert not set(dropout_U) & set(sequence_U)


def test_every_micro_batch_has_keys_of_its_own(monkeypatch):
  keys_UB = keys_of_updates(monkeypatch, train__accumulate=2)
  for update, key in np.ndindex(4, 2):
    keys_B = keys_UB[update, :, key]
    # row r belongs to micro-batch r % 2
    assert len(set(keys_B[0::2])) == len(set(keys_B[1::2])) == 1 and keys_B[0] != keys_B[1]
  np.testing.assert_array_equal(keys_UB[0, :, 1], keys_UB[1, :, 1])  # within a sequence
  assert len(set(keys_UB[:, :, 0].ravel())) == 8


def test_the_seed_decides_the_keys(monkeypatch):
  assert not (keys_of_updates(monkeypatch, 2) == keys_of_updates(monkeypatch, 2, train__seed=4)).any()


def test_the_seed_decides_the_start(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  one, other = (start_of(tiny.make_config(train__seed=seed)).params["embedding"] for seed in (0, 4))
  assert (one != other).all()


def test_every_update_revives_codes_with_a_key_of_its_own(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  monkeypatch.setattr(decoder, "update_buffers", lambda config, buffers, statistics, rng: jax.tree.map(
    lambda buffer: jnp.full_like(buffer, jax.random.uniform(rng)), buffers))
  config, drawn = tiny.make_config(), set()
  state, update = start_of(config), quick_jit(make_update(config, make_optimizer(config)))
  for step in range(3):
    state = update(state, first_batch(config, step))[0]
    drawn.add(float(state.buffers["usage_A"][0]))
  assert len(drawn) == 3


def test_a_gradient_that_is_not_finite_skips_the_update_though_the_loss_is(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  monkeypatch.setattr(decoder, "Decoder", Kinked)
  config = tiny.make_config(train__nan_skips=1)
  before, after, metrics = one_update(config, first_batch(config))
  assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
  assert (metrics["skipped"], int(after.step), int(after.skipped)) == (1.0, 1, 1)
  tiny.assert_same_bits(after.replace(step=0, skipped=0), before.replace(step=0, skipped=0))


def test_an_update_is_in_training_mode(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config = tiny.make_config(data__update_len=32, model__dropout=0.5)
  before, _, metrics = one_update(config, first_batch(config))
  loss, _ = gradient_of(config, first_batch(config), before)
  assert abs(loss - metrics["loss"] - metrics["aux_size"]) > 1e-3
