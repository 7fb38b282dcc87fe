"""A tiny model with anchors, for the tests of its report."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from lattice_jax.checkpoint import Checkpoints
from lattice_jax.config import AnchorsConfig, Config, DataConfig, ModelConfig
from lattice_jax.config_checks import to_dict
from lattice_jax.inspect.anchors.readers import Reader
from lattice_jax.memories.anchor.config import AnchorConfig
from lattice_jax.models.decoder import init_variables
from lattice_jax.sharding import make_mesh, unbox

MODEL = ModelConfig(
  dim=8, layers=2, pattern=("anchor",), block="mlp", mlp_dim=8, anchor=AnchorConfig(max_segment=12),
  attention=dataclasses.replace(ModelConfig().attention, heads=2, kv_heads=1, key_dim=16, value_dim=16))
CONFIG = Config(
  name="tiny", model=MODEL,
  data=DataConfig(source="synthetic", seq_len=64, update_len=64, anchors=AnchorsConfig(rule="every:5")))


def make_variables(model=MODEL):
  """Random, and large enough that what a token sees matters."""
  return jax.jit(lambda: jax.tree.map(lambda leaf: 1.5 * leaf, unbox(init_variables(model, jax.random.key(0)))))()


def write_run(workdir, config=CONFIG):
  workdir.mkdir(exist_ok=True)
  (workdir / "run.json").write_text(json.dumps({"config": to_dict(config)}))
  checkpoints = Checkpoints(workdir)
  checkpoints.save(3, make_variables(config.model), {"config": to_dict(config)})
  checkpoints.wait()
  checkpoints.close()
  return workdir


def make_reader(variables, memory="anchor", **fields):
  model = dataclasses.replace(MODEL, pattern=(memory,), **fields)
  mesh = make_mesh(CONFIG.mesh, jax.local_devices()[:1])
  return Reader(memory, model, jax.device_put(variables, jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec())), mesh, is_masked=memory == "anchor")


def random_ids(batch, length, seed=0):
  return np.random.default_rng(seed).integers(3, 259, (batch, length)).astype(np.int32)
