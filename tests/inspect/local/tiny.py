"""A tiny model with attention, and inputs of its layers, for the tests of the report on local attention."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from lattice_jax.inspect.local.arms import Heads
from lattice_jax.inspect.local.stream import Inputs, exact_outputs
from tests.inspect.anchors import tiny

LENGTH = 160
HEADS = Heads(heads=1, group=2, key_dim=16, value_dim=16)
CONFIG = dataclasses.replace(
  tiny.CONFIG, model=dataclasses.replace(tiny.MODEL, pattern=("attention",)),
  data=dataclasses.replace(
    tiny.CONFIG.data, seq_len=LENGTH, update_len=LENGTH, anchors=dataclasses.replace(
      tiny.CONFIG.data.anchors, rule="none")))


def write_run(workdir, config=CONFIG):
  return tiny.write_run(workdir, config)


@functools.cache
def inputs(layers=2, seed=0):
  rng = np.random.default_rng(seed)

  def normal(heads, scale):
    return jnp.asarray(rng.normal(0, scale, (layers, LENGTH, heads, 16)), jnp.float32)

  return Inputs(normal(2, 1.5), normal(1, 1.0), normal(1, 1.0))


@functools.cache
def exact():
  return exact_outputs(inputs())


def attention(given, layer, head, time, seen):
  """float64 output of one query."""
  q, key, value = (np.float64(x[layer]) for x in (given.q_LTQK, given.k_LTHK, given.v_LTHV))
  score = key[seen, head // 2] @ q[time, head] / 4
  weight = np.exp(score - score.max())
  return weight @ value[seen, head // 2] / weight.sum()
