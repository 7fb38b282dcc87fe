"""Who holds what: bytes of a device counted by hand, and a sentence for what cannot be split evenly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding

from lattice_jax.sharding import AXES, Axes
from lattice_jax.training import loop
from lattice_jax.training.holdings import Whole, holding, holdings, sentences
from tests.training import tiny

MESH = AbstractMesh((4, 1, 2), AXES)


def held(shape, names, wanted, path="params/a"):
  axes = Axes(names, wanted)
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, axes.fitting(shape, MESH)))
  return holding(path, leaf, axes, MESH)


def test_bytes_of_a_device_are_those_of_its_part():
  both = held((12, 6), ("embed", "mlp"), ("data", "model"))
  assert (both.device_bytes, both.copies, both.whole) == (12 * 6 * 4 // 8, 1, ())
  none = held((12,), ("key",), (None,))
  assert (none.device_bytes, none.copies, none.whole) == (48, 8, ())


def test_what_a_whole_axis_costs_is_said_once_for_all_arrays():
  embedding = held((259, 12), ("vocab", "embed"), ("model", "data"), "params/embedding")
  bias = held((259,), ("vocab",), ("model",), "params/bias")
  assert embedding.device_bytes == 259 * 3 * 4
  assert embedding.whole == (Whole("vocab", 259, "model", 259 * 3 * 4 - 259 * 3 * 2),)
  cost = 259 * 3 * 2 + 259 * 2
  sentence, = sentences([embedding, bias], MESH)
  assert sentence == (
    "an axis of 259 vocab cannot be split over mesh.model=2: params/embedding and 1 more stay whole on each device, "
    f"which costs it {cost:,} bytes; multiples of 2 are split")


def test_an_axis_whose_devices_another_one_has_costs_nothing():
  assert held((16, 16), ("embed", "embed"), ("data", "data")).whole == ()


def test_every_array_of_the_state_is_held_as_a_run_holds_it(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)
  config = tiny.make_config()
  found = {one.path: one for one in holdings(config, AbstractMesh((4, 1, 2), AXES))}
  embedding = found["params/embedding"]
  assert (embedding.spec, embedding.shape) == ((None, "data"), (259, 16))
  assert embedding.whole[0].name == "vocab"
  assert found["memory/mean_BD"].device_bytes == 8 * 16 * 4 // 4
  assert found["step"].copies == 8


def test_a_run_says_at_its_start_what_is_not_split(tmp_path, monkeypatch):
  notes = []
  monkeypatch.setattr("lattice_jax.writers.Writers.note", lambda self, text: notes.append(text))
  tiny.use_tiny_decoder(monkeypatch)
  loop.train(tiny.make_config(train__steps=1, mesh__model=2), tmp_path)
  assert [note for note in notes if "an axis of 259 vocab cannot be split over mesh.model=2: params/embedding" in note]
