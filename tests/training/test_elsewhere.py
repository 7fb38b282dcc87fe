"""A run whose checkpoints lie outside its workdir goes on, is evaluated and replayed from there."""

from __future__ import annotations

import pytest

from lattice_jax.checkpoint import load_for_eval
from lattice_jax.runtime import Stop
from lattice_jax.training import loop
from tests.training import tiny


@pytest.fixture(autouse=True)
def _tiny_run(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)


def test_checkpoints_elsewhere_are_found_again(tmp_path):
  run, far = tmp_path / "run", str(tmp_path / "far")
  loop.train(tiny.make_config(train__steps=2), run, checkpoints=far)
  state = loop.train(tiny.make_config(train__steps=4), run, checkpoints=far)
  assert not (run / "checkpoints").exists() and (tmp_path / "far" / "4").is_dir()
  _, params, _, step = load_for_eval(run)
  assert step == 4
  tiny.assert_same_bits(state.params, params)
  unbroken = loop.train(tiny.make_config(train__steps=4), tmp_path / "unbroken")
  tiny.assert_same_bits(state, unbroken)


def test_another_place_than_at_the_start_is_refused(tmp_path):
  loop.train(tiny.make_config(train__steps=1), tmp_path / "run", checkpoints=str(tmp_path / "far"))
  with pytest.raises(ValueError, match=r"was started with --checkpoints=\S+far, and now with no --checkpoints"):
    loop.train(tiny.make_config(train__steps=2), tmp_path / "run")


def test_an_update_that_is_not_finite_is_replayed_from_there(tmp_path):
  config = tiny.make_config(optimizer__learning_rate=1e38, optimizer__clip_norm=0.0)
  with pytest.raises(Stop, match="is not finite") as stopped:
    loop.train(config, tmp_path / "run", checkpoints=str(tmp_path / "far"))
  folder, = (tmp_path / "run").glob("nan_step_*")
  place = tmp_path / "far" / folder.name
  assert f"--workdir={folder} --checkpoints={place}" in str(stopped.value)
  with pytest.raises(Stop, match=f"after step {folder.name.removeprefix('nan_step_')} is not finite"):
    loop.train(config, folder, checkpoints=str(place))
