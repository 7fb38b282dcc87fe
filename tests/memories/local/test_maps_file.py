"""Files of fitted maps: written, read, and refused where they do not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from lattice_jax.memories.local.maps import map_shapes
from lattice_jax.memories.local.maps_file import FittedMaps, read_fitted, read_maps, write_maps
from tests.memories.local.test_features import ATTENTION, MODEL, SUMMARY

FACTS = {"model": "tiny", "weights": "0123", "features": 3, "hidden": 5, "windows": ((3, 7),)}


def arrays(layers=2):
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=(layers, *shape)).astype(np.float32)
          for name, shape in map_shapes(ATTENTION, SUMMARY).items()}


def model_with(path, **summary):
  local = dataclasses.replace(
    MODEL.local, maps=str(path), summary=dataclasses.replace(MODEL.local.summary, **summary))
  return dataclasses.replace(MODEL, local=local)


def test_what_is_written_is_read_and_given_to_the_model_that_it_is_for(tmp_path):
  path, given = tmp_path / "made" / "maps.safetensors", arrays()
  write_maps(path, FittedMaps(given, FACTS))
  maps = read_maps(path)
  assert maps.facts == {"format": "lattice_jax feature maps 1", **FACTS, "windows": [[3, 7]]}
  found = read_fitted(model_with(path), "0123")
  assert found.keys() == given.keys() and all((found[name] == given[name]).all() for name in given)
  one = maps.of_layers(np.array([1]))
  np.testing.assert_array_equal(one.key.out_HFR[0], given["far_key_out"][1])
  assert read_fitted(dataclasses.replace(MODEL, local=dataclasses.replace(MODEL.local, far="mean")), "") == {}


def change(**changes):
  return lambda given, facts: (given | changes, facts)


@pytest.mark.parametrize(("spoil", "summary", "weights", "message"), [
  (lambda given, facts: (given, facts), {}, "99", r"maps=.* was fitted to 'tiny' with the weights '0123', and this"),
  (lambda given, facts: (given, facts), {"features": 4}, "0123", r"fitted with features=3, and model\.local\.summary"),
  (lambda given, facts: (arrays(3), facts), {}, "0123", r"far_key_in has the shape \(3, 4, 6, 5\), and the model"),
  (lambda given, facts: ({"far_key_in": given["far_key_in"]}, facts), {}, "0123", r"has the shape of nothing, and the"),
  (change(far_key_out=np.full((2, 4, 5, 3), np.nan, np.float32)), {}, "0123", r"'far_key_out' holds something other"),
  (lambda given, facts: (given, facts | {"hidden": "5"}), {}, "0123", r"says features=3 and hidden='5', which must be"),
  (lambda given, facts: (given, {"hidden": 5}), {}, "0123", r"holds no maps of features \('lattice_jax feature map"),
], ids=["weights", "features", "layers", "missing", "nan", "type", "facts"])
def test_maps_that_do_not_fit_are_refused(spoil, summary, weights, message, tmp_path):
  path = tmp_path / "maps.safetensors"
  write_maps(path, FittedMaps(*spoil(arrays(), FACTS)))
  with pytest.raises(ValueError, match=message):
    read_fitted(model_with(path, **summary), weights)


def test_a_file_that_is_missing_or_another_is_refused_and_so_is_none(tmp_path):
  with pytest.raises(ValueError, match=r"^model\.local\.far=features needs maps, which a pretrained model does not"):
    read_fitted(MODEL, "0123")
  with pytest.raises(ValueError, match=r"the maps .*none\.safetensors cannot be read \(there is no such file\); name"):
    read_maps(tmp_path / "none.safetensors")
  (tmp_path / "cut").write_bytes(b"12345678 and more")
  with pytest.raises(ValueError, match=r"the maps .*cut cannot be read \(.*\); name a file of scripts/fit_far\.py"):
    read_maps(tmp_path / "cut")
  save_file({"a": np.zeros(2, np.float32)}, tmp_path / "other")
  with pytest.raises(ValueError, match=r"other holds no maps of features"):
    read_maps(tmp_path / "other")
