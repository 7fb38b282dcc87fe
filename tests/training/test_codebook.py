"""The codebook over whole training updates, on one device and several, against numpy; counts over long training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lattice_jax.data.loader import train_batches
from lattice_jax.data.sources import load_source
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.sharding import make_mesh
from lattice_jax.training.state import create_state
from tests.thorough import further
from tests.training import tiny

UPDATES = 6
KEY = 8


def make_config(update_len):
  """One layer whose keys depend on the token alone; its parameters all but stand still."""
  config = tiny.make_config(data__update_len=update_len, model__layers=1, optimizer__learning_rate=1e-20)
  vq = VQConfig(heads=2, kv_heads=2, key_dim=KEY, value_dim=4, codes=5, block_len=32, reduction="serial")
  return dataclasses.replace(config, model=dataclasses.replace(config.model, vq=vq))


def rms_normalized(x):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def keys_of_tokens(params):
  """[A, H, K] in float64."""
  block = params["groups"]["block_0"]
  gain_D = np.float64(block["memory_norm"]["gain"][0])
  x_AD = rms_normalized(np.float64(params["embedding"])) * gain_D
  return rms_normalized(np.einsum("AD,DHK->AHK", x_AD, np.float64(block["memory"]["key"][0]))) * KEY**-0.25


@pytest.mark.parametrize("devices", [8, *further(1)])
@pytest.mark.parametrize(
  "update_len", [pytest.param(32, id="whole-sequences", marks=pytest.mark.thorough), pytest.param(16, id="carried")])
def test_moving_average_over_the_global_batch_equals_numpy(update_len, devices):
  config = make_config(update_len)
  state = create_state(config, make_mesh(config.mesh, jax.devices()[:devices]))
  start = jax.device_get(state)  # the program takes the arrays over
  keys_AHK = keys_of_tokens(start.params)
  sums = start.buffers["groups"]["block_0"]["memory"]
  count_HM, total_HMK = np.float64(sums["codebook_count"][0]), np.float64(sums["codebook_sum"][0])
  batches = train_batches(config, load_source(config.data, "train"), start_step=0)
  for _ in range(UPDATES):
    tokens = np.asarray(next(batches).tokens_BT).ravel()
    rows_HMK = total_HMK / np.maximum(count_HM, 0.01)[..., None]
    k_NHK = keys_AHK[tokens]
    code_NH = ((k_NHK[:, :, None] - rows_HMK) ** 2).sum(-1).argmin(-1)
    new_count_HM, new_total_HMK = np.zeros_like(count_HM), np.zeros_like(total_HMK)
    for head in range(2):
      np.add.at(new_count_HM[head], code_NH[:, head], 1)
      np.add.at(new_total_HMK[head], code_NH[:, head], k_NHK[:, head])
    count_HM, total_HMK = 0.99 * count_HM + 0.01 * new_count_HM, 0.99 * total_HMK + 0.01 * new_total_HMK
  state, _ = tiny.run_updates(config, UPDATES, state=state, devices=jax.devices()[:devices])
  got = jax.device_get(state.buffers["groups"]["block_0"]["memory"])
  np.testing.assert_allclose(got["codebook_count"][0], count_HM, rtol=1e-6)
  np.testing.assert_allclose(got["codebook_sum"][0], total_HMK, rtol=1e-6, atol=1e-6 * np.abs(total_HMK).max())
  assert (code_NH != code_NH[0]).any()
