"""Schedules, decay, Adafactor, and that stacking layers changes nothing."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lattice_jax.config import OptimizerConfig
from lattice_jax.sharding import make_mesh
from lattice_jax.training.adafactor import adafactor
from lattice_jax.training.optimizer import RULES, Optimizer, decay_mask, learning_rate, stacked_mask
from lattice_jax.training.state import abstract_state, make_optimizer
from tests.training import tiny


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedule_rises_to_the_peak_and_ends_at_its_fraction(schedule):
  config = OptimizerConfig(schedule=schedule, learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
  rates = [float(learning_rate(config, 20, step)) for step in range(22)]
  assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
  assert rates[19:] == pytest.approx([2.0 if schedule == "constant" else 0.5] * 3)
  assert max(rates) == pytest.approx(2.0)


@pytest.mark.parametrize("warmup", [0, 1, 5, 50])
def test_schedule_is_finite_for_any_warm_up(warmup):
  config = OptimizerConfig(warmup_steps=warmup)
  rates = np.asarray([learning_rate(config, 5, step) for step in range(5)])
  assert np.isfinite(rates).all() and (rates > 0).all()


@pytest.mark.parametrize("decay", ["scaled", "independent"])
def test_decay_pulls_matrices_only_and_follows_the_rate_only_when_scaled(decay):
  config = OptimizerConfig(
    weight_decay=0.1, decay=decay, learning_rate=0.5, warmup_steps=10, schedule="constant")
  boxed = {"matrix": nn.LogicallyPartitioned(jnp.ones((3, 2, 2)), ("layers", "embed", "mlp")),
           "stacked_gain": nn.LogicallyPartitioned(jnp.ones((3, 2)), ("layers", "embed"))}
  optimizer = Optimizer(config, 100, decay_mask(boxed), stacked_mask(boxed))
  params = {name: box.value for name, box in boxed.items()}
  grads = jax.tree.map(jnp.zeros_like, params)
  new, _, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.asarray(0))
  rate = 0.1 if decay == "independent" else 0.1 * 0.5 / 10
  np.testing.assert_allclose(new["matrix"], 1 - rate, rtol=1e-6)
  np.testing.assert_array_equal(new["stacked_gain"], 1.0)


def test_clipping_bounds_the_norm_of_the_gradient_and_reports_the_norm_before():
  config = OptimizerConfig(name="lion", clip_norm=1.0)
  params = {"a": jnp.ones((2, 2))}
  optimizer = Optimizer(config, 10, decay_mask(params), stacked_mask(params))
  grads = {"a": jnp.full((2, 2), 5.0)}
  _, opt_state, norms = optimizer.update(grads, optimizer.init(params), params, step=jnp.asarray(0))
  assert norms["grad_norm"] == 10.0
  np.testing.assert_allclose(opt_state.mu["a"], 0.5 * (1 - config.b2), rtol=1e-5)


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
