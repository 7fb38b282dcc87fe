"""Profiles of windows: what a file says is what a model gets, and what does not fit is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lattice_jax.config import Config, ModelConfig
from lattice_jax.config_checks import check_config, default_config, parse_config, resolve, to_dict
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import LocalConfig
from lattice_jax.memories.local.profile import FORMAT, LocalProfile, read_profile, with_profile, write_profile

PROFILE = LocalProfile(
  model="tiny", sinks=2, rungs=(4, 8), windows=((4, 8), (0, 4), (8, 8)),
  baselines={"uniform": ((8, 8),) * 3, "retrieval layers": ((4, 4), (0, 0), (4, 4))})
MODEL = ModelConfig(layers=3, pattern=("local",), attention=AttentionConfig(heads=4, kv_heads=2))


@pytest.fixture
def path(tmp_path):
  write_profile(tmp_path / "tiny.json", PROFILE)
  return tmp_path / "tiny.json"


def raw_config(profile, **local):
  raw = default_config().to_dict()
  raw["model"].update({"layers": 3, "pattern": ("local",)})
  raw["model"]["attention"].update({"heads": 4, "kv_heads": 2})
  raw["model"]["local"].update({"profile": str(profile)} | local)
  return raw


def test_what_is_written_is_read(path):
  assert read_profile(path) == PROFILE


def test_a_config_takes_the_windows_of_its_profile_and_needs_the_file_no_more(path):
  config = parse_config(raw_config(path))
  want = LocalConfig(sinks=2, rungs=(4, 8), windows=(4, 8, 0, 4, 8, 8))
  assert config.model.local == want and with_profile(MODEL, PROFILE).local == want
  path.unlink()
  check_config(config)
  assert parse_config(json.loads(json.dumps(to_dict(config)))) == config


def test_a_baseline_is_named_behind_a_colon(path):
  assert parse_config(raw_config(f"{path}:retrieval layers")).model.local.windows == (4, 4, 0, 0, 4, 4)
  assert with_profile(MODEL, PROFILE, "uniform").local.windows == (8,) * 6
  odd = path.rename(path.with_name("a:b.json"))
  assert parse_config(raw_config(odd)).model.local.windows == (4, 8, 0, 4, 8, 8)


def test_a_model_that_comes_from_elsewhere_gets_its_windows_once_it_is_known(path):
  raw = raw_config(path)
  raw["model"].update({"origin": "init_from", "layers": 4})
  config = parse_config(raw)
  assert config.model.local.profile == str(path), "its layers are not those of the model"
  known = dataclasses.replace(MODEL, local=config.model.local)
  assert resolve(Config(model=known)).model.local.windows == (4, 8, 0, 4, 8, 8)


@pytest.mark.parametrize(("changes", "sentence"), [
  ({"kv_heads": 4}, r"has windows of 3 layers with 2 key/value heads, and the model has 3 with 4; use a profile"),
  ({"layers": 6}, r"has windows of 3 layers with 2 key/value heads, and the model has 6 with 2"),
  ({"sinks": 5}, r"profile=\S+ has its own sinks, and model\.local\.sinks=5 is given as well; leave one"),
  ({"windows": (64,)}, r"profile=\S+ has its own windows, and model\.local\.windows=\(64,\) is given as well"),
  ({"profile": "none.json"}, r"the profile none\.json cannot be read \(No such file or directory\); name the file"),
], ids=str)
def test_a_profile_that_does_not_fit_is_refused(path, changes, sentence):
  raw = raw_config(path)
  for name, value in changes.items():
    section = raw["model"] if name == "layers" else raw["model"]["attention" if name == "kv_heads" else "local"]
    section[name] = value
  with pytest.raises(ValueError, match=sentence) as caught:
    parse_config(raw)
  assert "\n" not in str(caught.value)


def test_a_baseline_that_is_not_there_is_refused(path):
  with pytest.raises(ValueError, match=r"unifrom has no baseline 'unifrom'; it has uniform, retrieval layers"):
    parse_config(raw_config(f"{path}:unifrom"))


@pytest.mark.parametrize(("changes", "sentence"), [
  ({"format": "lattice_jax local profile 2"}, r"says format 'lattice_jax local profile 2', and a profile of local"),
  ({"windows": [[4, 8], [0]]}, r"windows must be a list of layers, each the list of its heads' windows in whole"),
  ({"windows": []}, r"windows must be a list of layers"),
  ({"windows": [[4, 5]]}, r"the baseline 'uniform' is of another shape than windows"),
  ({"baselines": {}, "windows": [[4, 5]]}, r"windows holds 5, which is none of rungs=4,8; use one of them"),
  ({"baselines": {"wide": [[64, 4]] * 3}}, r"windows holds 64, which is none of rungs=4,8"),
  ({"baselines": [1]}, r"model must be a text and baselines an object of windows by name"),
  ({"rungs": [8, 4]}, r"rungs=8,4 must ascend"),
  ({"rungs": 4}, r"rungs=4 must be a list of whole numbers"),
  ({"windows": [["a", 4]], "baselines": {}}, r"windows must be a list of layers, each the list of its heads' wind"),
  ({"sinks": -1}, r"sinks=-1 must be 0 or more"),
  ({"widths": []}, r"has the unknown field 'widths'; a profile has format, model, sinks, rungs, windows, baselines"),
], ids=str)
def test_a_damaged_file_is_refused_in_one_sentence(path, changes, sentence):
  content = json.loads(path.read_text())
  assert content["format"] == FORMAT
  path.write_text(json.dumps(content | changes))
  with pytest.raises(ValueError, match=sentence) as caught:
    read_profile(path)
  assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_that_is_no_profile_is_refused(path):
  path.write_text("{")
  with pytest.raises(ValueError, match="is not JSON"):
    read_profile(path)
  content = {"format": FORMAT, "model": "tiny"}
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="lacks the field 'sinks'"):
    read_profile(path)


def test_a_profile_that_would_be_refused_is_not_written(tmp_path):
  with pytest.raises(ValueError, match="windows holds 5, which is none of"):
    write_profile(tmp_path / "odd.json", dataclasses.replace(PROFILE, windows=((5, 4),) * 3))
  assert not list(tmp_path.iterdir())
