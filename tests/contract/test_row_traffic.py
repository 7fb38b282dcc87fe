"""What devices that share the rows of a batch hand to one another, counted in a compiled update: not activations."""

from __future__ import annotations

import pathlib

import pytest

from lattice_jax.aot.train_step import compile_update
from lattice_jax.config_text import read_config
from lattice_jax.inspect.traffic import read_traffic
from lattice_jax.memories.registry import FOLDERS
from lattice_jax.sharding import make_mesh
from tests.thorough import further

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py:smoke"
QUICK = ("attention", "lattice", "vq")
OTHERS = sorted(set(FOLDERS) - set(QUICK))
DIM, ROWS = 64, 8
# Where XLA does not gather the table of embeddings, which is split by width, tokens go to it and their rows come back,
# and so do the gradients.
EMBEDDING_BYTES = 4 * ROWS + 2 * 4 * DIM  # a token of a device's row


def received_bytes(memory, length):
  """Of a device in an update of eight rows over eight devices, parameters split over them too."""
  config = read_config(str(CONFIG), [
    f"model.pattern=('{memory}',)", "model.layers=2", f"model.dim={DIM}", "model.xent_chunk=4096", "model.impl=xla",
    *(["model.attention.window=32"] if memory == "window" else []),
    f"data.batch={ROWS}", f"data.seq_len={length}", f"data.update_len={length}"])
  mesh = make_mesh(config.mesh)
  assert mesh.shape["data"] == ROWS and config.mesh.fsdp
  return read_traffic(compile_update(config, mesh).as_text(), dict(mesh.shape)).received_bytes


@pytest.mark.parametrize("memory", [*QUICK, *further(*OTHERS)])
def test_rows_of_activations_stay_where_they_are(memory):
  short, long = (received_bytes(memory, length) for length in (128, 256))
  assert short > 0 and long - short <= 128 * EMBEDDING_BYTES
