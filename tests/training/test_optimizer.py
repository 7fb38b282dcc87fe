"""Schedules, decay, Adafactor, and that stacking layers changes nothing."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lattice_jax.config import OptimizerConfig
from lattice_jax.config_checks import check_config
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.registry import FOLDERS
from lattice_jax.memories.vq.config import VQConfig
from lattice_jax.models import decoder
from lattice_jax.modules import Weight
from lattice_jax.sharding import make_mesh, unbox
from lattice_jax.training.adafactor import adafactor
from lattice_jax.training.optimizer import RULES, Optimizer, decay_mask, learning_rate, stacked_mask
from lattice_jax.training.state import abstract_state, make_optimizer
from tests.memories.sizes import faithful_section
from tests.training import tiny


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_rises_to_the_peak_and_ends_at_its_fraction(schedule):
  config = OptimizerConfig(schedule=schedule, learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
  rates = [float(learning_rate(config, 20, step)) for step in range(22)]
  assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
  assert rates[19:] == pytest.approx([2.0 if schedule == "constant" else 0.5] * 3)
  assert max(rates) == pytest.approx(2.0)


@pytest.mark.parametrize("warmup", [0, 4])
def test_zero_start_is_the_published_schedule(warmup):
  """Warm-up from 0 at the first update, and a cosine to a tenth that the last one has not quite reached."""
  config = OptimizerConfig(learning_rate=2.0, warmup_steps=warmup, zero_start=True)
  want = [
    2 * step / warmup if step < warmup else 2 * (0.9 * (1 + np.cos(np.pi * (step - warmup) / (20 - warmup))) / 2 + 0.1)
    for step in range(20)]
  assert [float(learning_rate(config, 20, step)) for step in range(20)] == pytest.approx(want, rel=1e-5)
  assert want[0] == (0.0 if warmup else 2.0)


@pytest.mark.parametrize("warmup", [0, 1, 5, 50])
def test_schedule_is_finite_for_any_warm_up(warmup):
  config = OptimizerConfig(warmup_steps=warmup)
  rates = np.asarray([learning_rate(config, 5, step) for step in range(5)])
  assert np.isfinite(rates).all() and (rates > 0).all()


@pytest.mark.parametrize("decay", ["scaled", "independent"])
def test_decay_pulls_weights_only_and_follows_the_rate_only_when_scaled(decay):
  config = OptimizerConfig(
    weight_decay=0.1, decay=decay, learning_rate=0.5, warmup_steps=10, schedule="constant")
  boxed = {"matrix": Weight(jnp.ones((3, 2, 2)), ("layers", "embed", "mlp")),
           "stacked_gain": nn.LogicallyPartitioned(jnp.ones((3, 2)), ("layers", "embed")),
           "bias_of_heads": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("heads", "key"))}
  optimizer = Optimizer(config, 100, decay_mask(boxed), stacked_mask(boxed))
  params = {name: box.value for name, box in boxed.items()}
  grads = jax.tree.map(jnp.zeros_like, params)
  new, _, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.asarray(0))
  rate = 0.1 if decay == "independent" else 0.1 * 0.5 / 10
  np.testing.assert_allclose(new["matrix"], 1 - rate, rtol=1e-6)
  np.testing.assert_array_equal(new["stacked_gain"], 1.0)
  np.testing.assert_array_equal(new["bias_of_heads"], 1.0)


def test_clipping_bounds_the_norm_of_the_gradient_and_reports_the_norm_before():
  config = OptimizerConfig(name="lion", clip_norm=1.0)
  params = {"a": jnp.ones((2, 2))}
  optimizer = Optimizer(config, 10, decay_mask(params), stacked_mask(params))
  grads = {"a": jnp.full((2, 2), 5.0)}
  _, opt_state, norms = optimizer.update(grads, optimizer.init(params), params, step=jnp.asarray(0))
  assert norms["grad_norm"] == 10.0
  np.testing.assert_allclose(opt_state.mu["a"], 0.5 * (1 - config.b2), rtol=1e-5)


# What a decoder with a memory has beside its weights: in its blocks' norms, its memory, its head.
FRAME = {"memory_norm/gain", "memory_norm/bias", "mlp_norm/gain", "mlp_norm/bias", "final_norm/gain",
         "final_norm/bias", "head_bias", "position_scale"}
PROJECTIONS = {"query", "key", "value", "out"}
RECURRENT = PROJECTIONS | {"gate", "query_taps", "key_taps", "value_taps"}
ATTENTION = PROJECTIONS | {"gate"}, {"query_bias", "key_bias", "value_bias", "out_bias"}
DECAYS = {
  "attention": ATTENTION,
  "window": ATTENTION,
  "anchor": ATTENTION,
  "local": ATTENTION,
  "vq": (PROJECTIONS | {"gate", "relative"}, {"content_bias", "position_bias", "near_bias"}),
  "lattice": (RECURRENT | {"step", "forget"}, {"step_bias", "forget_bias", "start", "gain"}),
  "linear": (RECURRENT, {"gain"}),
  "scalar_decay": (RECURRENT | {"width"}, {"width_bias", "log_rate", "skip", "gain"}),
  "gla": (RECURRENT | {"decay_down", "decay_up"}, {"decay_bias", "gain"}),
  "deltanet": (RECURRENT | {"step"}, {"step_bias", "gain"}),
  "gated_deltanet": (RECURRENT | {"step", "width"}, {"step_bias", "width_bias", "log_rate", "gain"}),
  "kimi_delta": (
    (RECURRENT - {"gate"}) | {"step", "decay_down", "decay_up", "gate_down", "gate_up"},
    {"step_bias", "decay_bias", "gate_bias", "log_rate", "gain"}),
  "gated_slots": (RECURRENT | {"decay"}, {"gain"}),
  "ttt_linear": (
    RECURRENT | {"step"},
    {"step_bias", "place_rate", "inner_start", "inner_bias", "inner_scale", "inner_shift", "gain"}),
  "gru": (RECURRENT, {
    "own_update", "own_reset", "own_candidate", "update_bias", "reset_bias", "candidate_bias", "gain"}),
  "online_vq": (RECURRENT, {"log_sharpness", "gain"}),
}


# What a layer has with `faithful`, where that is not the same.
FAITHFUL_DECAYS = {
  "linear": (PROJECTIONS, set()),
  "scalar_decay": (
    RECURRENT | {"width"},
    {"width_bias", "log_rate", "skip", "gain", "query_taps_bias", "key_taps_bias", "value_taps_bias"}),
  "deltanet": (RECURRENT | {"step"}, {"gain"}),
  "gated_deltanet": (RECURRENT | {"step", "width"}, {"width_bias", "log_rate", "gain"}),
  "kimi_delta": (DECAYS["kimi_delta"][0], DECAYS["kimi_delta"][1] - {"step_bias"}),
  "gated_slots": ((RECURRENT - {"gate"}) | {"decay"}, {"gain"}),
  "ttt_linear": (
    (RECURRENT - {"key", "value_taps"}) | {"step"},
    DECAYS["ttt_linear"][1] | {"norm_bias", "query_taps_bias", "key_taps_bias"}),
}


@pytest.mark.parametrize(
  ("memory", "faithful"), [*((memory, False) for memory in FOLDERS), *((memory, True) for memory in FAITHFUL_DECAYS)])
def test_weights_decay_and_biases_gains_and_learned_starts_do_not(memory, faithful):
  """Every parameter of every memory, whatever its number of axes; several heads, so that biases have two."""
  sections = faithful_section(memory) if faithful else {}
  config = tiny.make_config(
    model__pattern=(memory,), model__block="mlp", model__norm_bias=True, model__position_wavelength=1e4,
    **{f"model__{name}": section for name, section in sections.items()},
    model__attention=AttentionConfig(bias="all", gated=True, window=4), model__lattice=LatticeConfig(forget=True),
    model__vq=VQConfig(heads=2, kv_heads=2, key_dim=8, value_dim=16, codes=8, block_len=8, near_start=1.0))
  decays = {
    "/".join(key.key for key in path).replace("groups/block_0/", ""): decays
    for path, decays in jax.tree_util.tree_leaves_with_path(make_optimizer(config).decays)}
  weights, others = (FAITHFUL_DECAYS if faithful else DECAYS)[memory]
  assert {name for name, decays in decays.items() if decays} == {
    "embedding", "head", "mlp/gate", "mlp/up", "mlp/down", *(f"memory/{name}" for name in weights)}
  assert {name for name, decays in decays.items() if not decays} == FRAME | {f"memory/{name}" for name in others}


def test_the_joined_projection_of_vq_decays():
  vq = VQConfig(key_dim=8, value_dim=16, codes=8, block_len=8, joined=True)
  assert make_optimizer(tiny.make_config(model__vq=vq)).decays["groups"]["block_0"]["memory"]["joined"]


def test_decay_mask_does_not_depend_on_stacking():
  stacked = make_optimizer(tiny.make_config()).decays
  config = tiny.make_config(model__scan_layers=False)
  unrolled = make_optimizer(config).decays
  assert any(jax.tree.leaves(stacked)) and not all(jax.tree.leaves(stacked))
  for n in range(config.model.layers):
    assert unrolled["group_" + str(n)] == stacked["groups"]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_updates_stacked_layers_like_unrolled_ones(name):
  config, unrolled_config = stacked_and_unrolled(optimizer__name=name, optimizer__eps=1e-6)
  shapes, groups = abstract_state(config, make_mesh(config.mesh)).params, range(config.model.layers)
  optimizer, unrolled_optimizer = make_optimizer(config), make_optimizer(unrolled_config)
  params = random_like(shapes, seed=0)
  unrolled = unroll(params, groups)
  moments, unrolled_moments = optimizer.init(params), unrolled_optimizer.init(unrolled)
  update, update_unrolled = jax.jit(optimizer.update), jax.jit(unrolled_optimizer.update)
  for step in range(3):
    grads, step = random_like(shapes, seed=step + 1), jnp.asarray(step)
    params, moments, _ = update(grads, moments, params, step=step)
    unrolled, unrolled_moments, _ = update_unrolled(unroll(grads, groups), unrolled_moments, unrolled, step=step)
  assert_close((unrolled, unrolled_moments), (unroll(params, groups), unroll(moments, groups)))


@pytest.mark.thorough
@pytest.mark.slow
def test_stacked_layers_train_like_unrolled_ones():
  config, unrolled_config = stacked_and_unrolled(optimizer__name="adafactor", train__steps_per_dispatch=3)
  start, _ = tiny.run_updates(config, 0)
  groups = range(config.model.layers)
  start = start.replace(
    params=unroll(start.params, groups), buffers=unroll(start.buffers, groups),
    opt_state=unroll(start.opt_state, groups))
  unrolled, unrolled_metrics = tiny.run_updates(unrolled_config, 3, state=start)
  stacked, metrics = tiny.run_updates(config, 3)
  for field in ("params", "buffers", "opt_state"):
    assert_close(getattr(unrolled, field), unroll(getattr(stacked, field), groups))
  assert [m["loss"] for m in unrolled_metrics] == pytest.approx([m["loss"] for m in metrics], rel=1e-5)


def stacked_and_unrolled(**changes):
  config = wide_config(**changes)
  return config, dataclasses.replace(config, model=dataclasses.replace(config.model, scan_layers=False))


def random_like(shapes, *, seed):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: jnp.asarray(random.normal(size=shape.shape), jnp.float32), shapes)


def assert_close(tree, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), tree, expected)


def wide_config(**changes):
  """Wide enough for Adafactor to factor some of the moments, and others not."""
  vq = dataclasses.replace(tiny.make_config().model.vq, value_dim=128)
  return tiny.make_config(model__dim=128, model__vq=vq, **changes)


def unroll(tree, groups):
  """{"groups": stacked, …} → {"group_0": …, "group_1": …, …}, also within a tuple of moments."""
  if isinstance(tree, tuple):
    return type(tree)(*[unroll(part, groups) for part in tree])
  if not isinstance(tree, dict):
    return tree
  rest = {name: value for name, value in tree.items() if name != "groups"}
  return rest | {f"group_{n}": jax.tree.map(lambda x, n=n: x[n], tree["groups"]) for n in groups}


def test_adafactor_updates_each_layer_as_optax_updates_it_alone():
  keys = jax.random.split(jax.random.key(0), 4)
  params_L, grads_L = jax.random.normal(keys[0], (3, 129, 130)), 1e-3 * jax.random.normal(keys[1], (3, 129, 130))
  params_L *= jnp.asarray([1.0, 1e-2, 1e-5])[:, None, None]  # layers of different size, one below the least scale
  rule = adafactor({"weight": True})
  state = rule.init({"weight": params_L})
  alone = optax.adafactor(1.0)
  states = [alone.init(param) for param in params_L]
  for n in range(3):
    grads = grads_L * (n + 1)
    change, state = rule.update({"weight": grads}, state, {"weight": params_L})
    for layer in range(3):
      expected, states[layer] = alone.update(grads[layer], states[layer], params_L[layer])
      np.testing.assert_allclose(change["weight"][layer], -expected, rtol=1e-4, atol=1e-9)


SHAPES = {  # with and without factors, and a number; "joined" is one tensor to Adafactor
  "joined": (2, 130, 129 + 3 * 130), "content_bias": (2, 1, 4), "embedding": (9, 130), "position_scale": ()}
AXES = {"joined": ("layers", "embed", "value"), "content_bias": ("layers", "heads", "key"),
        "embedding": ("vocab", "embed"), "position_scale": ()}
WEIGHTS = {"joined", "embedding"}
PUBLISHED = {
  "adamw": OptimizerConfig(
    name="adamw", learning_rate=0.02, warmup_steps=2, zero_start=True, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.01,
    decay="independent", clip_norm=0.1),
  "adafactor": OptimizerConfig(
    name="adafactor", learning_rate=0.02, warmup_steps=2, zero_start=True, weight_decay=0.01, decay="independent",
    clip_norm=0.0)}


def rms(x):
  return np.sqrt((x * x).mean())


def adam_direction(grads, step, moments):
  """One update of every tensor of a list; moments: dicts that are kept between updates."""
  norm = np.sqrt(sum((grad**2).sum() for grad in grads))
  directions = []
  for grad, kept in zip(grads, moments, strict=True):
    grad = grad * min(1, 0.1 / norm)
    kept["m"] = 0.9 * (kept["m"] if "m" in kept else 0) + 0.1 * grad
    kept["v"] = 0.98 * (kept["v"] if "v" in kept else 0) + 0.02 * grad**2
    directions.append(kept["m"] / (1 - 0.9**(step + 1)) / (np.sqrt(kept["v"] / (1 - 0.98**(step + 1))) + 1e-9))
  return directions


def adafactor_direction(grads, params, step, moments):
  """Second moments of matrices by rows and columns, then a clip and the size of the parameter."""
  old, directions = 1 - (step + 1.0) ** -0.8, []
  for grad, param, kept in zip(grads, params, moments, strict=True):
    square = grad**2 + 1e-30
    if grad.ndim >= 2 and min(grad.shape) >= 128:
      means = {"row": square.mean(-1, keepdims=True), "column": square.mean(-2, keepdims=True)}
      for name, mean in means.items():
        kept[name] = old * (kept[name] if name in kept else 0) + (1 - old) * mean
      moment = kept["row"] * kept["column"] / kept["row"].mean()
    else:
      moment = kept["v"] = old * (kept["v"] if "v" in kept else 0) + (1 - old) * square
    change = grad / np.sqrt(moment)
    directions.append(change / max(1, rms(change)) * max(1e-3, rms(param)))
  return directions


def tensors_of(tree):
  """Every parameter in float64, layer by layer."""
  parts = [np.float64(tree[name]) if AXES[name][:1] == ("layers",) else np.float64(tree[name])[None] for name in AXES]
  return [layer for part in parts for layer in part]


@pytest.mark.parametrize("name", PUBLISHED)
def test_three_updates_are_those_of_a_float64_transcription(name):
  """Of the published optimizers, a tensor of a layer at a time; the first moves nothing but what decays."""
  boxed = {
    key: (Weight if key in WEIGHTS else nn.LogicallyPartitioned)(jnp.zeros(SHAPES[key]), AXES[key]) for key in AXES}
  optimizer = Optimizer(PUBLISHED[name], 10, decay_mask(boxed), stacked_mask(boxed))
  random = np.random.default_rng(0)
  params = {key: random.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()}
  params["content_bias"][:] = 0
  tensors, decays = tensors_of(params), tensors_of({key: np.full(SHAPES[key], key in WEIGHTS) for key in AXES})
  moments, opt_state, update = [{} for _ in tensors], optimizer.init(params), jax.jit(optimizer.update)
  for step, rate in enumerate([0, 0.01, 0.02]):
    grads = {key: np.float32(0.1 * (step + 1) * random.normal(size=shape)) for key, shape in SHAPES.items()}
    params, opt_state, _ = update(grads, opt_state, params, step=jnp.asarray(step))
    flat = tensors_of(grads)
    directions = (
      adam_direction(flat, step, moments) if name == "adamw" else adafactor_direction(flat, tensors, step, moments))
    tensors = [
      tensor - rate * direction - 0.01 * decay * tensor
      for tensor, direction, decay in zip(tensors, directions, decays, strict=True)]
    for got, want in zip(tensors_of(params), tensors, strict=True):
      np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_adafactor_sees_joined_tensors_as_one():
  """Parts of a joined tensor whose gradients differ in size are not updated as they would be alone."""
  rule, random = adafactor({"joined": False}), np.random.default_rng(0)
  parts, grads = ([
    jnp.asarray(random.normal(size=(130, 129)) * size, jnp.float32) for size in (1e-3, 1.0)] for _ in range(2))

  def direction(grad, param):
    return rule.update({"joined": grad}, rule.init({"joined": param}), {"joined": param})[0]["joined"]

  joined = direction(jnp.concatenate(grads, -1), jnp.concatenate(parts, -1))
  assert rms(joined[:, :129]) > 100 * rms(direction(grads[0], parts[0]))


def test_adafactor_shards_what_has_the_shape_of_its_parameter_and_keeps_rows_and_columns_small():
  config = wide_config(optimizer__name="adafactor")
  state = abstract_state(config, make_mesh(config.mesh))
  moments = state.opt_state["embedding"]
  assert moments.v_row.shape == (128,) and moments.v_col.shape == (259,) and moments.v.shape == (1,)
  block, params = state.opt_state["groups"]["block_0"]["memory"], state.params["groups"]["block_0"]["memory"]
  assert block["query"].v.sharding == params["query"].sharding != moments.v_row.sharding
  assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 0.2 * sum(
    leaf.size for leaf in jax.tree.leaves(state.params))


def test_adafactor_moves_a_parameter_in_proportion_to_its_size():
  config = OptimizerConfig(name="adafactor", clip_norm=0.0, learning_rate=0.01, warmup_steps=1, schedule="constant")
  params = {"small": jnp.full((4, 4), 0.1), "large": jnp.full((4, 4), 10.0)}
  optimizer = Optimizer(config, 10, decay_mask(params), stacked_mask(params))
  grads = jax.tree.map(jnp.ones_like, params)
  new, _, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.asarray(0))
  for name, param in params.items():
    np.testing.assert_allclose(new[name], 0.99 * param, rtol=1e-5)


def test_only_the_last_layers_learn_and_they_learn_as_always():
  pattern = ("window",) * 4
  config = tiny.make_config(model__pattern=pattern, model__layers=4)
  last = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, last_layers=2))
  optimizer = make_optimizer(last)
  params = unbox(jax.jit(functools.partial(decoder.init_variables, config.model))(jax.random.key(0))["params"])
  learned = optimizer.learned(params)
  paths = {jax.tree_util.keystr(path, simple=True, separator="/")
           for path, _ in jax.tree_util.tree_leaves_with_path(learned)}
  assert {"/".join(path.split("/")[:2]) for path in paths} == {"groups/block_2", "groups/block_3", "final_norm/gain"}
  # an update of these is that of the whole model, where no norm joins them with the others
  grads = random_like(params, seed=1)
  whole = make_optimizer(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clip_norm=0.0)))
  part = dataclasses.replace(optimizer, config=dataclasses.replace(optimizer.config, clip_norm=0.0))
  moved, _, _ = jax.jit(whole.update)(grads, whole.init(params), params, step=3)
  got, _, _ = jax.jit(part.update)(part.learned(grads), part.init(params), params, step=3)
  assert_close(part.learned(got), part.learned(moved))
  frozen = {"embedding", "block_0", "block_1", "head", "head_bias"}
  for path, leaf in jax.tree_util.tree_leaves_with_path(got):
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    before = functools.reduce(lambda tree, name: tree[name], names, params)
    assert np.array_equal(leaf, before) == bool(frozen & set(names)), names


@pytest.mark.parametrize(("changes", "sentence"), [
  ({"optimizer__last_layers": 9}, "optimizer.last_layers=9 is more than model.layers=2"),
  ({"optimizer__last_layers": 1}, "needs layers that are arrays of their own, and model.pattern names 1 of 2"),
])
def test_last_layers_that_cannot_be_told_apart_are_refused(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    check_config(tiny.make_config(**changes))
