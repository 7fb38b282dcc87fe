"""Optimizers and schedules against their papers' equations, in float64 numpy."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import OptimizerConfig
from lattice_jax.training.optimizer import Optimizer, learning_rate
from tests.contract.harness import quick_jit

STEPS, WARMUP, PEAK, LEAST = 40, 4, 0.03, 0.2
SHAPES = {"matrix": (3, 4), "bias": (4,)}
DECAYED = {"matrix": True, "bias": False}


def normals(seed, shapes):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def falls(schedule, progress):
  return {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1.0}[schedule]


def rate(step, schedule="cosine"):
  done = step + 1
  if done < WARMUP:
    return PEAK * done / WARMUP
  return PEAK * (LEAST + (1 - LEAST) * falls(schedule, (done - WARMUP) / (STEPS - WARMUP)))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_rate_of_a_schedule(schedule):
  config = OptimizerConfig(schedule=schedule, learning_rate=PEAK, warmup_steps=WARMUP, final_fraction=LEAST)
  got = [float(learning_rate(config, STEPS, step)) for step in range(STEPS)]
  np.testing.assert_allclose(got, [rate(step, schedule) for step in range(STEPS)], rtol=1e-5)


def adamw(grad, param, moments, step, config):
  """Decoupled weight decay (1711.05101): moments with their bias put right."""
  first, second = moments or (0, 0)
  first, second = config.b1 * first + (1 - config.b1) * grad, config.b2 * second + (1 - config.b2) * grad**2
  unbiased = first / (1 - config.b1 ** (step + 1)), second / (1 - config.b2 ** (step + 1))
  return unbiased[0] / (np.sqrt(unbiased[1]) + config.eps), (first, second)


def lion(grad, param, moment, step, config):
  """2302.06675: the sign of one average moves, another is kept."""
  moment = 0 if moment is None else moment
  return np.sign(config.b1 * moment + (1 - config.b1) * grad), config.b2 * moment + (1 - config.b2) * grad


def adafactor(grad, param, moments, step, config):
  """1804.04235: at large matrices the second moment is that of rows times that of columns over their mean."""
  keep, square = 1 - (step + 1) ** -0.8, grad**2 + 1e-30
  if min(grad.shape) >= 128 and grad.ndim == 2:
    row, column = moments or (0, 0)
    row, column = keep * row + (1 - keep) * square.mean(1), keep * column + (1 - keep) * square.mean(0)
    moments, second = (row, column), np.outer(row, column) / row.mean()
  else:
    moments = second = keep * (0 if moments is None else moments) + (1 - keep) * square
  change = grad / np.sqrt(second)
  change /= max(1.0, np.sqrt((change**2).mean()))
  return change * max(1e-3, np.sqrt((param**2).mean())), moments


RULES = {"adamw": adamw, "lion": lion, "adafactor": adafactor}


@pytest.mark.parametrize(("name", "decay", "clip", "shapes"), [
  ("adamw", "scaled", 100.0, SHAPES), ("adamw", "independent", 1.5, SHAPES), ("lion", "scaled", 2.5, SHAPES),
  ("adafactor", "scaled", 0.0, SHAPES | {"matrix": (128, 130)})], ids=str)
def test_a_rule_is_the_papers(name, decay, clip, shapes):
  config = OptimizerConfig(
    name=name, learning_rate=PEAK, warmup_steps=WARMUP, final_fraction=LEAST, b1=0.8, b2=0.95, eps=0.1,
    weight_decay=0.1, decay=decay, clip_norm=clip)
  optimizer = Optimizer(config, STEPS, DECAYED, dict.fromkeys(shapes, False))
  want = normals(0, shapes)
  params = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float32), want)
  state, moments, update = optimizer.init(params), dict.fromkeys(shapes), quick_jit(optimizer.update)
  for step in range(4):
    grads = normals(step + 1, shapes)
    params, state, norms = update(
      jax.tree.map(jnp.float32, grads), state, params, step=jnp.asarray(step))
    norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
    np.testing.assert_allclose([norms["grad_norm"], norms["learning_rate"]], [norm, rate(step)], rtol=1e-5)
    for key, grad in grads.items():
      grad = grad * min(1.0, clip / norm) if clip else grad
      change, moments[key] = RULES[name](grad, want[key], moments[key], step, config)
      shrink = DECAYED[key] * config.weight_decay * (rate(step) if decay == "scaled" else 1.0)
      want[key] = want[key] - rate(step) * change - shrink * want[key]
    for key in shapes:
      np.testing.assert_allclose(params[key], want[key], rtol=2e-5, atol=2e-6)
