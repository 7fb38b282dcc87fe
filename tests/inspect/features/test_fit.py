"""Maps fitted to a tiny pretrained model: what is compared, what the fit changes, and the file in the model's hands."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lattice_jax.evaluation.loaded_model import load_pretrained_model
from lattice_jax.inspect.features.fit import Near, make_sample, relative_squares
from lattice_jax.inspect.features.run import Sizes, fit_maps
from lattice_jax.inspect.local import texts
from lattice_jax.inspect.local.arms import FEATURES, candidates
from lattice_jax.inspect.local.context import Context
from lattice_jax.inspect.local.context import Sizes as ReportSizes
from lattice_jax.inspect.local.errors import measure_errors
from lattice_jax.inspect.windows.calibrate import Sizes as HeadSizes
from lattice_jax.inspect.windows.calibrate import load_model, measure_heads
from lattice_jax.memories.local.maps_file import read_maps, write_maps
from lattice_jax.models.pretrained import open_pretrained
from tests.memories.local.scene import LENGTH, SINKS, WINDOWS, tokens
from tests.memories.local.test_far import step
from tests.memories.local.test_features import CONFIG, make_maps
from tests.models.tiny_files import LLAMA, make_tensors, write_folder

MODEL = LLAMA | {"vocab_size": 259, "max_position_embeddings": 256, "head_dim": 8}
WITH = (
  "data.tokenizer=bytes", "data.source=synthetic", "model.local.sinks=2", "model.local.rungs=8",
  "model.local.windows=8", "model.local.summary.features=4", "model.local.summary.hidden=8")
SIZES = Sizes(texts=6, held_out=3, seq_len=96, stride=2, steps=200, rate=0.02, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  tensors = make_tensors(MODEL)
  return str(write_folder(tmp_path_factory.mktemp("tiny") / "model", MODEL, {
    name: 2 * tensor if "k_proj" in name else tensor for name, tensor in tensors.items()}))


@pytest.fixture(scope="module")
def fitted(folder):
  loaded = texts.load_model(pretrained=folder, workdir=None, overrides=WITH)
  said = []
  maps, errors = fit_maps(loaded, open_pretrained(folder).digest, SIZES, report=said.append)
  return loaded, maps, errors, said


def test_what_is_fitted_is_the_output_of_the_memory_itself():
  q, k, v = tokens()
  maps, near = make_maps(), Near.of(WINDOWS, SINKS)
  sample = make_sample(q[0], k[0], v[0], near, stride=3)
  full, out = (
    np.asarray(step(q, k, v, config=config, maps=given)[0])[0, 2::3] for config, given in (
      (dataclasses.replace(CONFIG, far="none", windows=(0,)), None), (CONFIG, maps)))
  squares_HG = np.asarray(relative_squares(maps, sample, near, 1.0))
  for head, window in enumerate(WINDOWS):
    counts_N = np.arange(2, LENGTH, 3) >= SINKS + window if window else np.zeros(len(full), bool)
    for member in range(2):
      want = full[counts_N, 2 * head + member]
      off = ((out[counts_N, 2 * head + member] - want)**2).sum() / max((want**2).sum(), 1e-30)
      np.testing.assert_allclose(squares_HG[head, member], off, rtol=1e-4, atol=1e-9)
  assert (squares_HG[1] == 0).all() and (squares_HG[[0, 2, 3]] > 0).all()


def test_the_fit_lowers_the_error_on_texts_that_it_has_not_seen(fitted):
  _, _, errors, said = fitted
  assert len(errors) == 2 and said[1].startswith("layer 0: window alone 0.") and said[-1].startswith("mean of layers:")
  for each in errors:
    assert each.after < 0.8 * each.alone and each.after < 0.97 * each.before


def test_a_pretrained_model_takes_its_maps_and_no_others(fitted, folder, tmp_path):
  _, maps, *_ = fitted
  path = tmp_path / "maps.safetensors"
  write_maps(path, maps)
  assert read_maps(path).facts["windows"] == [[8, 8], [8, 8]]
  as_local = [*WITH, "model.pattern=local", "model.local.far=features"]
  given = [*as_local, f"model.local.maps={path}"]
  loaded = load_pretrained_model(folder, workdir=None, dtype="float32", overrides=given)
  found = loaded.params["groups"]["block_0"]["memory"]["far_key_out"]
  np.testing.assert_array_equal(found, maps.arrays["far_key_out"])
  for overrides, message in (
    (as_local, r"^model\.local\.far=features needs maps, which a pretrained model does not have; fit them"),
    ([*given, "model.local.summary.features=5"], r"was fitted with features=4, and model\.local\.summary\.features=5")):
    with pytest.raises(ValueError, match=message):
      load_pretrained_model(folder, workdir=None, dtype="float32", overrides=overrides)
  with pytest.raises(ValueError, match=r"weights are streamed .*far_\w+ is in none of them; give no budget"):
    load_pretrained_model(folder, workdir=None, dtype="float32", overrides=given, budget=2**30)
  other = str(write_folder(tmp_path / "model", MODEL, make_tensors(MODEL, 1)))
  with pytest.raises(ValueError, match=r"was fitted to 'model' with the weights '\w+', and this model has \w+; fit"):
    load_pretrained_model(other, workdir=None, dtype="float32", overrides=given)


def test_layers_of_a_pattern_have_the_maps_of_their_places(fitted, folder, tmp_path):
  _, maps, *_ = fitted
  path = tmp_path / "maps.safetensors"
  write_maps(path, maps)
  loaded = load_pretrained_model(folder, workdir=None, dtype="float32", overrides=[
    *WITH, "model.pattern=attention,local", "model.local.far=features", f"model.local.maps={path}"])
  groups = loaded.params["groups"]
  np.testing.assert_array_equal(groups["block_1"]["memory"]["far_key_out"], maps.arrays["far_key_out"][1:])
  assert "far_key_out" not in groups["block_0"]["memory"]


def test_fitted_maps_lose_less_in_the_choice_of_windows_and_stand_in_the_comparison_at_equal_bytes(
    fitted, folder, tmp_path):
  loaded, maps, *_ = fitted
  path = tmp_path / "maps.safetensors"
  write_maps(path, maps)
  heads = texts.heads_of(loaded)
  (arm,) = candidates(FEATURES, 20, heads, [maps])
  assert arm.far_bytes(heads) == 4 * 4 * (8 + 1) and arm.window(20, heads) == 20 - 4 - 3
  sizes = ReportSizes(texts=1, tuning_texts=1, needle_texts=1, seq_len=64, budgets=(20,), seed=0)
  context = Context(loaded, "test", sizes, lambda line: None, texts.read_fitted(loaded, folder, [path]))
  context.__dict__["settings"] = {20: {FEATURES: arm}}
  (record,) = measure_errors(context)["budgets"][0]["arms"]
  assert record["setting"] == "Features(features=4), maps 1" and record["error"] < 0.9 * record["without_summary"]
  local = [*WITH, "model.local.far=features", f"model.local.maps={path}"]
  with pytest.raises(ValueError, match=r"maps, which are parameters of the memory local alone; give model\.pattern"):
    load_model(pretrained=folder, workdir=None, overrides=local)
  chosen = load_model(pretrained=folder, workdir=None, overrides=[*local, "model.pattern=local"])
  errors = measure_heads(chosen, HeadSizes(texts=1, seq_len=64, stride=4, weighed=0))
  assert (errors.far.square_RH < 0.8 * errors.alone.square_RH).mean() > 0.7


def test_what_the_fit_does_not_know_is_refused(fitted):
  loaded, *_ = fitted
  for changes, sizes, message in (
    ({"picks": 2, "pick_lag": 4}, {}, r"model\.local\.picks=2 is not known to the fit"),
    ({"windows": (0,)}, {}, r"texts of --seq_len=96 tokens are seen whole under model\.local\.windows=0"),
    ({}, {"seq_len": 10}, r"texts of --seq_len=10 tokens are seen whole")):
    local = dataclasses.replace(loaded.config.model.local, **changes)
    config = dataclasses.replace(loaded.config, model=dataclasses.replace(loaded.config.model, local=local))
    with pytest.raises(ValueError, match=message):
      fit_maps(dataclasses.replace(loaded, config=config), "", dataclasses.replace(SIZES, **sizes), report=print)
