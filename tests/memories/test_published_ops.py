"""The recurrences against their papers' equations, transcribed in float64 (published_ops.py)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.delta import op as delta
from lattice_jax.memories.gated_linear import op as gated_linear
from lattice_jax.memories.gated_slots import op as gated_slots
from lattice_jax.memories.gru import op as gru
from lattice_jax.memories.lattice import op as lattice
from lattice_jax.memories.ttt import op as ttt
from lattice_jax.ops.parallel_recurrence import RecurrenceForm
from tests.contract.harness import quick_jit
from tests.memories import published_ops as published

BATCH, LENGTH, HEADS, KEY, VALUE, SLOTS, CHUNK = 2, 11, 2, 3, 5, 4, 4
IDS, VALID = jnp.zeros((BATCH, LENGTH), jnp.int32), jnp.ones((BATCH, LENGTH), bool)
RNG, FLOAT64 = np.random.default_rng(0), jnp.dtype("float64")


def numbers(*shape):
  return RNG.normal(size=(BATCH, LENGTH, HEADS, *shape))


def gates(*shape):
  return RNG.uniform(size=(BATCH, LENGTH, HEADS, *shape))


Q, K, V = numbers(KEY), 0.6 * numbers(KEY), numbers(VALUE)
STEP, SCALAR, CHANNELS, SHARES = gates(), gates(), gates(KEY), gates(SLOTS)
MATRIX = functools.partial(gated_linear.empty_state, BATCH, HEADS, KEY, VALUE, dtype=FLOAT64)
SQUARE = [0.02 * numbers(VALUE), 0.02 * numbers(VALUE), numbers(VALUE)]
# Weights so small that what is added to a variance counts.
LEARNER = [
  0.02 * RNG.normal(size=(HEADS, VALUE, VALUE)), 1e-4 * RNG.normal(size=(HEADS, VALUE)),
  1 + 0.2 * RNG.normal(size=(HEADS, VALUE)), 0.2 * RNG.normal(size=(HEADS, VALUE)), 1 / np.arange(1, CHUNK + 1)]
CODES, START = [numbers(SLOTS), 0.5 * numbers(SLOTS), numbers(VALUE)], RNG.normal(size=(HEADS, SLOTS, VALUE))
UNITS = [numbers(VALUE), numbers(VALUE), numbers(VALUE)], RNG.normal(size=(3, HEADS, VALUE))


def arrays(*numbers):
  return [None if x is None else jnp.asarray(x) for x in numbers]


def linear(impl, decay=None):
  return gated_linear.gated_linear(*arrays(Q, K, V, decay), MATRIX(), IDS, VALID, chunk_len=CHUNK, impl=impl)[0]


def delta_rule(impl, decay=None):
  return delta.delta(*arrays(Q, K, V, STEP, decay), MATRIX(), IDS, VALID, chunk_len=CHUNK, impl=impl)[0]


def kimi_delta(impl):
  return delta.kimi_delta(*arrays(Q, K, V, STEP, CHANNELS), MATRIX(), IDS, VALID, chunk_len=CHUNK, impl=impl)[0]


def slots(impl):
  state = gated_slots.empty_state(BATCH, HEADS, SLOTS, KEY, VALUE, dtype=FLOAT64)
  return gated_slots.gated_slots(
    *arrays(Q, K, V, 1 - SHARES, SHARES), state, IDS, VALID, chunk_len=CHUNK, impl=impl)[0]


def ttt_linear(impl):
  state = ttt.empty_state(BATCH, HEADS, VALUE, dtype=FLOAT64)
  learner = ttt.Learner(*arrays(*LEARNER))
  return ttt.ttt(*arrays(*SQUARE, 0.1 * STEP), learner, state, IDS, VALID, impl=impl)[0]


def para_gru(impl):
  form = RecurrenceForm("newton", chunk_len=CHUNK, tolerance=1e-15)
  state = gru.empty_state(BATCH, HEADS, VALUE, dtype=FLOAT64)
  return gru.gru(*arrays(*UNITS[0]), gru.GRUWeights(*arrays(*UNITS[1])), state, IDS, VALID, form=form, impl=impl)[0]


def slots_on_the_sphere(objective, is_projected, impl):
  rule = lattice.Rule(objective, is_projected=is_projected)
  state = lattice.empty_state(BATCH, HEADS, SLOTS, VALUE, rule=rule, form=lattice.Form(), dtype=FLOAT64)
  return lattice.lattice(
    *arrays(*CODES, STEP, 0.5 + 0.5 * SCALAR, START), state, IDS, VALID, rule=rule, impl=impl)[0]


CASES = {
  "linear": (linear, lambda b, h: published.linear(*head(b, h, Q, K, V))),
  "scalar_decay": (
    functools.partial(linear, decay=SCALAR[..., None]),
    lambda b, h: published.gated(*head(b, h, Q, K, V, SCALAR[..., None] * np.ones(KEY)))),
  "gla": (functools.partial(linear, decay=CHANNELS), lambda b, h: published.gated(*head(b, h, Q, K, V, CHANNELS))),
  "deltanet": (delta_rule, lambda b, h: published.delta(*head(b, h, Q, K, V, STEP))),
  "gated_deltanet": (
    functools.partial(delta_rule, decay=SCALAR[..., None]),
    lambda b, h: published.delta(*head(b, h, Q, K, V, STEP, SCALAR))),
  "kimi_delta": (kimi_delta, lambda b, h: published.kimi_delta(*head(b, h, Q, K, V, STEP, CHANNELS))[0]),
  "gated_slots": (slots, lambda b, h: published.gated_slots(*head(b, h, Q, K, V, SHARES))),
  "ttt_linear": (
    ttt_linear,
    lambda b, h: published.ttt_linear(
      *head(b, h, *SQUARE, 0.1 * STEP), *(array[h] for array in LEARNER[:-1]), LEARNER[-1])),
  "gru": (para_gru, lambda b, h: published.para_gru(*head(b, h, *UNITS[0]), *UNITS[1][:, h])),
} | {
  f"lattice-{objective}{'' if projected else '-unprojected'}": (
    functools.partial(slots_on_the_sphere, objective, projected),
    lambda b, h, objective=objective, projected=projected: published.lattice(
      *head(b, h, *CODES, STEP, 0.5 + 0.5 * SCALAR), START[h], objective=objective, projected=projected))
  for objective, projected in (("decoding", True), ("encoding", True), ("similarity", True), ("decoding", False))
}


def head(row, number, *arrays):
  return [array[row, :, number] for array in arrays]


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("name", CASES)
def test_the_op_is_the_papers_equation(name, impl):
  op, equation = CASES[name]
  with jax.enable_x64(True):
    got = np.asarray(quick_jit(functools.partial(op, impl))())
  assert got.dtype == np.float64
  for row, number in np.ndindex(BATCH, HEADS):
    np.testing.assert_allclose(got[row, :, number], equation(row, number), rtol=1e-9, atol=1e-11)
