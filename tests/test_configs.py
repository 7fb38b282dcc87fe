"""Every experiment file, and what a user may get wrong in a config."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib

import pytest

from configs import common
from lattice_jax.config_checks import default_config, parse_config, to_dict
from lattice_jax.data.sources import load_source
from lattice_jax.models.parameters import count_parameters
from tests import counting
from tests.thorough import further

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "common")


def load(name, arg=""):
  return importlib.import_module(f"configs.{name}").get_config(arg)


def tokens(config):
  return config.train.steps * config.data.batch * config.data.update_len


def parameters(config):
  return counting.parameters(parse_config(config).model)


@pytest.mark.parametrize("arg", ["", "sample", "smoke", "sample,smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_config_is_valid_and_survives_json(name, arg):
  config = load(name, arg)
  assert config.is_locked
  parsed = parse_config(config)
  assert parse_config(json.loads(json.dumps(to_dict(parsed)))) == parsed


@pytest.mark.parametrize("name", NAMES)
def test_docstring_holds_command_cost_and_expectation(name):
  text = importlib.import_module(f"configs.{name}").__doc__
  assert f"python train.py --config=configs/{name}.py --workdir=runs/{name}" in text
  assert "Cost:" in text and "Expected:" in text


@pytest.mark.parametrize("name", NAMES)
def test_smoke_is_small_and_keeps_the_features(name):
  full, smoke = parse_config(load(name)), parse_config(load(name, "smoke"))
  assert parameters(load(name, "smoke")) < 100_000
  assert smoke.data.source in {*common.SAMPLES.values(), "recall"}, "runs on a fresh machine"
  assert load_source(smoke.data, "test").name == smoke.data.source
  assert smoke.data.batch * smoke.data.update_len * smoke.train.steps <= 4096
  assert smoke.data.batch % 8 == 0, "runs on eight devices"
  assert set(smoke.model.pattern) == set(full.model.pattern)
  for field in ("block", "dtype", "remat", "dropout", "layer_drop", "scan_layers", "norm_bias", "tied_bias",
                "float32_head", "position_wavelength"):
    assert getattr(smoke.model, field) == getattr(full.model, field)
  assert (smoke.data.update_len < smoke.data.seq_len) == (full.data.update_len < full.data.seq_len)


@pytest.mark.parametrize("arg", ["", *further("sample", "smoke")])
@pytest.mark.parametrize("data", sorted(common.SAMPLES))
def test_softmax_twin_has_equal_parameters_and_tokens(data, arg):
  vq, full = parse_config(load(f"vq_{data}", arg)), parse_config(load(f"full_{data}", arg))
  ratio = parameters(load(f"full_{data}", arg)) / parameters(load(f"vq_{data}", arg))
  assert abs(ratio - 1) < 0.01
  assert tokens(vq) == tokens(full)
  assert vq.optimizer == full.optimizer
  assert dataclasses.replace(vq.train, steps=full.train.steps) == full.train
  assert full.model.pattern == ("attention",)


def published_count(vocab, dim, value_dim, *, tied, positions=False, biases):
  """Numbers in the published model: of its first code with norms that have gain and bias, of its second without."""
  key_dim, codes = 128, 512
  norm = 2 * dim if biases else 0
  unit = norm + dim * (3 * key_dim + 2 * value_dim) + value_dim * dim + 2 * key_dim + codes * (key_dim + 1)
  head = norm + (vocab if biases else 0) if tied else dim * vocab + vocab
  return 48 * unit + vocab * dim + head + positions


SIZES = {
  ("vq_enwik8", ""): (259, 768, 1536), ("vq_pg19", ""): (32_000, 2048, 4096),
  ("vq_imagenet64", ""): (259, 2048, 4096), ("vq_imagenet64", "190m"): (259, 768, 1536)}
MILLIONS = {("vq_enwik8", ""): 187.679, ("vq_pg19", ""): 1314.660, ("vq_imagenet64", ""): 1249.622,
            ("vq_imagenet64", "190m"): 187.482}


@pytest.mark.parametrize(("name", "arg"), SIZES)
def test_paper_size(name, arg):
  """Parameters and codebook statistics, which the published counts include, to the last number."""
  model = parse_config(load(name, arg)).model

  def count(model):
    return count_parameters(counting.shapes(model))

  tied, positions = name != "vq_enwik8", name == "vq_imagenet64"
  first = published_count(*SIZES[name, arg], tied=tied, positions=positions, biases=True)
  assert count(model) == first and first / 1e6 == pytest.approx(MILLIONS[name, arg], abs=1e-3)
  second = dataclasses.replace(
    model, norm_gain=False, norm_bias=False, tied_bias=False, position_wavelength=0.0,
    vq=dataclasses.replace(model.vq, joined=False))
  assert count(second) == published_count(*SIZES[name, arg], tied=tied, biases=False)


def test_models_for_a_pod_are_of_one_size():
  """Half a million tokens an update, a hundred billion in all, and equal parameters and states."""
  lattice, delta = load("lattice_1b"), load("delta_1b")
  assert parameters(lattice) == pytest.approx(1.33e9, rel=2e-3)
  assert parameters(delta) == pytest.approx(parameters(lattice), rel=2e-3)
  assert delta.model.pattern == ("gated_deltanet",)
  for config in (lattice, delta):
    assert config.data.batch * config.data.update_len == 2**19
    assert tokens(config) == pytest.approx(1e11, rel=0.01)
    assert config.data.batch % 64 == 0, "a row for each chip of a v5p 4×4×4"


def test_long_sequences_change_no_tokens_of_an_update():
  paper, long = parse_config(load("vq_pg19")), parse_config(load("vq_pg19", "long"))
  assert long.data.update_len == long.data.seq_len == 131_072
  assert long.data.batch * long.data.update_len == paper.data.batch * paper.data.update_len
  assert (long.model, long.optimizer, long.train) == (paper.model, paper.optimizer, paper.train)
  assert parse_config(load("vq_pg19", "long,smoke")).mesh.seq == 1, "runs on one device"


DETAILS = (
  "model.norm_bias", "model.tied_bias", "model.float32_head", "model.position_wavelength", "model.vq.joined",
  "model.vq.key_gradient", "model.vq.stale_rows", "optimizer.zero_start")


def value_of(config, path):
  for name in path.split("."):
    config = getattr(config, name)
  return config


@pytest.mark.parametrize("arg", ["", "smoke"])
def test_paper_configs_have_the_details_of_the_published_code(arg):
  for data in common.SAMPLES:
    details = [value_of(load(f"vq_{data}", arg), path) for path in DETAILS]
    assert details == [True, True, True, 1e5 if data == "imagenet64" else 0.0, True, "blocks", True, True]


def test_all_other_configs_have_ours():
  ours = [value_of(common.default(), path) for path in DETAILS]
  for name in NAMES:
    for arg in ("", "sample"):
      is_paper = arg == "" and name in (f"{kind}_{data}" for kind in ("vq", "full") for data in common.SAMPLES)
      assert is_paper or [value_of(load(name, arg), path) for path in DETAILS] == ours, (name, arg)


def test_quickstart_looks_beyond_its_window():
  config = parse_config(load("quickstart"))
  assert config.data.seq_len >= 8 * config.model.vq.block_len


def test_unknown_variant_is_refused_with_a_suggestion():
  with pytest.raises(ValueError, match=r"no variant 'smok'.*sample, smoke.*Did you mean 'smoke'"):
    load("vq_enwik8", "sample,smok")


@pytest.mark.parametrize("name", ["recall", "delta_pg19", "ablation_lattice"])
def test_two_memories_in_one_place_are_refused(name):
  with pytest.raises(ValueError, match="one memory at a time, not linear and gla; name one"):
    load(name, "gla,linear,smoke")


def test_misspelt_field_is_refused_with_a_suggestion():
  with pytest.raises(AttributeError, match='Did you mean "layers"'):
    common.default().model.layer = 3
  raw = default_config().to_dict()
  raw["model"]["layer"] = 3
  with pytest.raises(ValueError, match=r"unknown config field model\.layer;.*Did you mean 'layers'"):
    parse_config(raw)


@pytest.mark.parametrize(("section", "changes", "message"), [
  ("model", {"dim": "wide"}, r"model\.dim='wide' must be of type int, not str"),
  ("model", {"tied_embeddings": 1}, r"model\.tied_embeddings=1 must be of type bool"),
  ("model", {"layers": True}, r"model\.layers=True must be of type int, not bool"),
  ("model", {"pattern": "vq"}, r"model\.pattern='vq' must be a list"),
  ("model", {"pattern": ("vqq",)}, r"model\.pattern=\('vqq',\) names 'vqq'.*Did you mean 'vq'"),
  ("model", {"pattern": ("vq", "attention"), "layers": 3}, r"model\.layers=3 is not a multiple of the 2 entries"),
  ("model", {"dim": 15, "pattern": ("lattice",), "position_wavelength": 1e4},
   r"model\.dim=15 must be even for .*; use 16, or"),
  ("model", {"pattern": ("attention",), "attention": {"rope_theta": 1.0, "rope_scaling": {"kind": "yarn"}}},
   r"rope_theta=1\.0 must be above 1 for rope_scaling\.kind='yarn'"),
  ("model", {"dropout": 1.0}, r"model\.dropout=1\.0 must lie in \[0, 1\)"),
  ("model", {"dtype": "bfloat"}, r"model\.dtype='bfloat' is not one of float32, bfloat16.*Did you mean 'bfloat16'"),
  ("data", {"seq_len": 1000, "update_len": 512}, r"update_len=512 does not divide data\.seq_len=1000; .* 500"),
  ("data", {"seq_len": 768, "update_len": 768}, r"model\.vq\.block_len=512, .* data\.update_len=768; .* such as 384"),
  ("data", {"batch": 0}, r"data\.batch=0 must be positive"),
  ("train", {"accumulate": 3}, r"train\.accumulate=3 does not divide data\.batch=16; .* such as 2"),
  ("eval", {"protocol": "warm"}, r"eval\.protocol='warm' is not one of cold, carried, both"),
], ids=str)
def test_bad_value_is_refused_in_one_sentence(section, changes, message):
  raw = default_config().to_dict()
  raw[section].update(changes)
  with pytest.raises(ValueError, match=message) as caught:
    parse_config(raw)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"update_len": 256}, {"rows": "documents"}], ids=str)
def test_a_memory_that_forgets_between_updates_cannot_be_carried(changes):
  raw = default_config().to_dict()
  raw["model"]["pattern"] = ("attention",)
  parse_config(raw)
  raw["data"].update(changes)
  with pytest.raises(ValueError, match=r"'attention' forgets between updates, .* use data\.rows='sequences'"):
    parse_config(raw)


def test_names_may_come_separated_by_commas():
  config = common.default()
  config.train.writers = ("stdout,jsonl,wandb",)
  assert parse_config(config).train.writers == ("stdout", "jsonl", "wandb")


def test_whole_number_is_taken_for_a_float_field():
  config = common.default()
  config.optimizer.learning_rate = 1
  assert isinstance(parse_config(config).optimizer.learning_rate, float)
