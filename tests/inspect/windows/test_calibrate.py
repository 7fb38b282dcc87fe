"""From texts to a profile that the memory takes: tiny models whose heads are known."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import Config, DataConfig, ModelConfig
from lattice_jax.evaluation.loaded_model import LoadedModel
from lattice_jax.inspect.anchors.texts import to_batch, window_rows, windows
from lattice_jax.inspect.op_inputs import unstack
from lattice_jax.inspect.windows.calibrate import Sizes, _out_weight, make_profile, measure_heads, under
from lattice_jax.inspect.windows.losses import make_arms, measure_losses, removal, row_bytes
from lattice_jax.inspect.windows.prefill import prefill_pairs, score_continuation
from lattice_jax.inspect.windows.profile_files import write_all
from lattice_jax.inspect.windows.weights import layer_weights
from lattice_jax.memories.local.config import LocalConfig, flat
from lattice_jax.memories.local.profile import read_profile
from lattice_jax.memories.softmax import split as softmax_split
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.ops.stored_weight import StoredWeight
from lattice_jax.sharding import make_mesh, tree_bytes, unbox
from lattice_jax.types import whole_segment

MODEL = ModelConfig(
  dim=8, layers=2, pattern=("attention",), block="mlp", mlp_dim=8,
  local=LocalConfig(sinks=2, rungs=(4, 8, 16), windows=(4,), far="mean"),
  attention=dataclasses.replace(ModelConfig().attention, heads=2, kv_heads=2, key_dim=8, value_dim=8))
SIZES = Sizes(texts=2, seq_len=48, stride=4, weighed=16)


@pytest.fixture(scope="module")
def loaded():
  config = Config(name="tiny", model=MODEL, data=DataConfig(source="books_sample", seq_len=64, update_len=64))
  mesh = make_mesh(config.mesh, jax.local_devices()[:1])
  variables = jax.jit(lambda: jax.tree.map(lambda leaf: 1.5 * leaf, unbox(
    init_variables(MODEL, jax.random.key(0)))))()
  variables = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  return LoadedModel(
    workdir=None, config=config, overrides=(), params=variables["params"], buffers=variables.get("buffers", {}),
    step=None, mesh=mesh)


@pytest.fixture(scope="module")
def calibration(loaded):
  return measure_heads(loaded, SIZES)


def test_weights_are_the_squared_gradients_of_the_layers_outputs():
  """Of a text of one token, the gradient of a layer's output is that of the bias which is added to it."""
  model = dataclasses.replace(MODEL, attention=dataclasses.replace(MODEL.attention, bias="all"))
  variables = jax.jit(lambda: unbox(init_variables(model, jax.random.key(1))))()
  ids_BT = np.array([[5, 9], [7, 3]], np.int32)

  def loss(params, ids_BT):
    nll_BT, _ = Decoder(model).apply(
      {**variables, "params": params}, ids_BT[:, :1], ids_BT[:, 1:], init_state(model, 1), whole_segment(1, 1),
      method=Decoder.score)
    return nll_BT.sum()

  squares = []
  for ids_T in jnp.asarray(ids_BT):
    gradient = jax.grad(loss)(variables["params"], ids_T[None])
    squares.append((gradient["groups"]["block_0"]["memory"]["out_bias"] ** 2).sum(-1))
  np.testing.assert_allclose(
    layer_weights(model, variables, ids_BT), np.mean(squares, axis=0) / 2 / model.dim, rtol=1e-4)


def test_a_larger_window_loses_less_and_a_summary_changes_what_is_lost(calibration):
  assert calibration.error_RLH.shape == (4, 2, 2)
  assert np.all(calibration.error_RLH[-1] == 0)
  assert np.all(calibration.error_RLH[:-1] > 0)
  assert np.all(np.diff(calibration.alone.mass_RH, axis=0) > 0)
  assert np.any(calibration.far.square_RH != calibration.alone.square_RH)
  np.testing.assert_array_equal(calibration.far.mass_RH, calibration.alone.mass_RH)
  np.testing.assert_allclose(
    calibration.error_RLH[:-1], calibration.far.square_RH * calibration.weight_L[:, None], rtol=1e-6)


def test_the_output_weight_is_the_same_where_it_lies_as_its_file_has_it():
  wide = dataclasses.replace(MODEL.attention, heads=2, value_dim=4)
  model, weight_QVD = dataclasses.replace(MODEL, attention=wide), np.arange(64.0, dtype=np.float32).reshape(2, 4, 8)
  stored = StoredWeight(jnp.asarray(weight_QVD.reshape(8, 8).T))
  np.testing.assert_array_equal(_out_weight(model, stored), weight_QVD)
  np.testing.assert_array_equal(_out_weight(model, weight_QVD), weight_QVD)


def test_the_profile_keeps_no_more_than_the_uniform_window(loaded, calibration, tmp_path):
  profile, steps = make_profile(loaded, calibration, budget=8, context=64)
  arms = {arm.name: arm for arm in make_arms(loaded, profile)}
  assert list(arms) == [
    "full", "chosen", "uniform", "retrieval_heads", "chosen + mean", "uniform + mean", "retrieval_heads + mean",
    "prefill_windows"]
  most = row_bytes(arms["uniform"], 64)
  assert arms["prefill_windows"].reading == arms["uniform"].model
  assert row_bytes(arms["prefill_windows"], 64) == row_bytes(arms["full"], 64)
  assert row_bytes(arms["chosen"], 64) <= most
  assert row_bytes(arms["retrieval_heads"], 64) <= most
  assert steps[-1].spent == row_bytes(arms["chosen"], 64)
  kept = tree_bytes(init_state(arms["chosen"].model, 1, 64)["block_0"].rings)
  assert kept == row_bytes(arms["chosen"], 64)
  files = write_all(tmp_path / "made" / "tiny.json", profile, steps, calibration, {"budget": 8})
  assert read_profile(files[0]) == profile
  lines = [json.loads(line) for line in files[1].read_text().splitlines()]
  assert lines[0] == {"budget": 8} and len(lines) == len(steps) + 1
  errors = json.loads(files[2].read_text())
  assert errors["rungs"] == [4, 8, 16]
  np.testing.assert_allclose(errors["far"]["relative"], calibration.far.relative_RH, rtol=1e-3)


def test_a_budget_that_was_not_measured_is_refused(loaded, calibration):
  with pytest.raises(ValueError, match="--budget=64 is a window for which no error was measured; use one of 4, 8, 16"):
    make_profile(loaded, calibration, budget=64, context=64)


def test_texts_in_which_no_window_hides_anything_are_refused(loaded):
  with pytest.raises(ValueError, match="seen whole in every window"):
    measure_heads(loaded, dataclasses.replace(SIZES, seq_len=6))


def with_picks(model):
  return dataclasses.replace(model, local=dataclasses.replace(model.local, picks=3, pick_lag=2))


def test_picks_are_not_calibrated_but_count_as_bytes(loaded, calibration):
  picked = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, model=with_picks(MODEL)))
  with pytest.raises(ValueError, match=r"model\.local\.picks=3 is not known to the choice of windows; choose them"):
    measure_heads(picked, SIZES)
  profile, _ = make_profile(loaded, calibration, budget=8, context=64)
  arm = next(arm for arm in make_arms(loaded, profile) if arm.name == "chosen")
  own = dataclasses.replace(arm, model=with_picks(arm.model))
  state = jax.eval_shape(lambda: init_state(own.model, 1, 64))["block_0"]
  kept = tree_bytes((state.rings, state.picks.key_BHPK, state.picks.value_BHPV))
  assert row_bytes(own, 64) == kept == row_bytes(arm, 64) + 2 * 2 * 3 * 4 * (8 + 8)


def test_losses_are_of_the_last_tokens_and_differ_by_windows(loaded, calibration):
  profile, _ = make_profile(loaded, calibration, budget=8, context=64)
  arms = [arm for arm in make_arms(loaded, profile) if arm.windows in ("full", "uniform")]
  found = measure_losses(
    loaded, arms, split="test", texts=3, seq_len=32, scored=8, report=lambda line: None)
  full, uniform, far = found["arms"]
  assert found["ranges"] == [(0, 32)] and uniform["by_position"][0][0] != 0
  assert full["above_full"] == [0, 0, 0] and uniform["above_uniform"] == [0, 0, 0]
  assert uniform["above_full"][0] == pytest.approx(uniform["nats"] - full["nats"], abs=1e-9)
  assert uniform["above_full"][0] != 0 and far["nats"] != uniform["nats"]
  assert len(full["by_text"]) == 3
  assert found["removal"][0]["rise"] == pytest.approx(uniform["nats"] - far["nats"], abs=1e-9)
  short = measure_losses(loaded, arms[:2], split="test", texts=3, seq_len=32, scored=32, report=lambda line: None)
  assert short["arms"][0]["nats"] != full["nats"]
  with pytest.raises(ValueError, match="--scored=33 must be between 1 and the 32"):
    measure_losses(loaded, arms, split="test", texts=1, seq_len=32, scored=33, report=lambda line: None)


def test_a_continuation_sees_all_keys_of_a_prompt_that_was_read_under_windows(loaded, monkeypatch):
  start, windows_LH = 20, ((4, 8), (8, 16))
  attention = under(MODEL, "attention")
  local = dataclasses.replace(MODEL.local, windows=flat(windows_LH), far="none")
  source, tokenizer = loaded.read_split("test")
  batch = to_batch(window_rows(windows(source, 32, 2)), tokenizer, None)
  found_BT = score_continuation(
    dataclasses.replace(under(MODEL, "local"), local=local), attention, loaded.variables, loaded.mesh, batch, start)
  layers, time_T = iter(windows_LH), np.arange(32)

  def masked(q, k, v, state, *given, **options):
    """Every query under its own mask, written out; one head for each key."""
    window_H11 = np.array(next(layers))[:, None, None]
    back_TS = time_T[:, None] - time_T
    sees_HTS = (back_TS >= 0) & ((time_T >= start)[:, None] | (time_T < local.sinks) | (back_TS < window_H11))
    score_BHTS = jnp.where(sees_HTS, jnp.einsum("BTHK,BSHK->BHTS", q, k) * 8**-0.5, -jnp.inf)
    return jnp.einsum("BHTS,BSHV->BTHV", jax.nn.softmax(score_BHTS), v), state

  monkeypatch.setattr(softmax_split, "softmax_attention", masked)
  plain = dataclasses.replace(attention, scan_layers=False, remat="none")
  variables = {name: unstack(tree, attention) for name, tree in loaded.variables.items()}
  expected_BT, _ = jax.jit(lambda *tokens: Decoder(plain).apply(
    variables, *tokens, init_state(plain, 2), whole_segment(2, 32), method=Decoder.score))(
      batch.tokens_BT, batch.targets_BT)
  np.testing.assert_allclose(found_BT, expected_BT[:, start:], atol=2e-5)


@pytest.mark.parametrize(("start", "is_equal"), [(4, True), (20, False)])
def test_a_prompt_that_no_window_cuts_is_read_as_under_full_attention(loaded, calibration, start, is_equal):
  profile, _ = make_profile(loaded, calibration, budget=4, context=64)
  arms = [arm for arm in make_arms(loaded, profile) if arm.windows in ("full", "prefill_windows")]
  found = measure_losses(
    loaded, arms, split="test", texts=1, seq_len=32, scored=32 - start, report=lambda line: None)
  assert (abs(found["arms"][1]["above_full"][0]) < 1e-6) == is_equal
  assert found["arms"][0]["prefill_pairs"] == 1
  assert (found["arms"][1]["prefill_pairs"] == 1) == is_equal


def test_pairs_of_a_prompt_are_counted_one_by_one():
  local = dataclasses.replace(MODEL.local, windows=(4, 0, 8, 16))
  model = dataclasses.replace(under(MODEL, "local"), local=local)
  seen = sum(min(t + 1, 2 + window) if window else t + 1 for window in (4, 0, 8, 16) for t in range(30))
  assert prefill_pairs(model, 30) == pytest.approx(seen / (4 * 30 * 31 / 2))
  assert prefill_pairs(under(MODEL, "attention"), 30) == 1


@pytest.mark.parametrize(("rise", "verdict"), [
  (0.1, "the summary helps"), (-0.1, "the summary harms"), (0.0, "it did nothing certain")])
def test_removal_says_whether_the_loss_rises(loaded, calibration, rise, verdict):
  profile, _ = make_profile(loaded, calibration, budget=8, context=64)
  arms = [arm for arm in make_arms(loaded, profile) if arm.windows == "chosen"]
  noise_B = np.array([-0.01, 0.01, -0.01, 0.01])
  (record,) = removal({"chosen": 2 + rise + noise_B, "chosen + mean": np.full(4, 2.0)}, arms)
  assert record["verdict"] == verdict
  assert record["rise"] == pytest.approx(rise, abs=1e-9)
