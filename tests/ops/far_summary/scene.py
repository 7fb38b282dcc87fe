"""A stream of tokens that leave, in calls of any size, for the tests of summaries; and attention in float64."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.attention.fold import Evicted
from tests.contract.harness import quick_jit

ROWS, HEADS, GROUP, KEY, VALUE = 2, 2, 2, 4, 3
LENGTH = 42
# Of every row and head, which tokens leave: the first two never do, as sinks, and some stay as picks.
LEAVES = np.random.default_rng(5).random((ROWS, HEADS, LENGTH)) < 0.8
LEAVES[:, :, :2] = False


@functools.cache
def stream(seed=0):
  """Keys, values, and the queries of the group of each head, float32, [B, H, N, …]."""
  rng = np.random.default_rng(seed)
  shape = ROWS, HEADS, LENGTH
  key, value = rng.normal(1, 1.5, (*shape, KEY)), rng.normal(size=(*shape, VALUE))
  value[..., 0] += key[..., 0]
  return tuple(x.astype(np.float32) for x in (key, value, rng.normal(0, 2, (*shape, GROUP, KEY))))


def evicted(start, stop, leaves=LEAVES, poison=0.0, tokens=None):
  """Tokens [start, stop) of the stream; `poison` is added to those that stay, which then stand at others' places."""
  key, value, query = tokens or stream()
  leaves = leaves[:, :, start:stop]
  bad = np.where(leaves, 0, poison)[..., None].astype(np.float32)
  position = np.broadcast_to(np.arange(start, stop, dtype=np.int32), leaves.shape)
  return Evicted(
    key_BHSK=jnp.asarray(key[:, :, start:stop] + bad), value_BHSV=jnp.asarray(value[:, :, start:stop] + bad),
    position_BHS=jnp.asarray(np.where(leaves | (poison == 0), position, start).astype(np.int32)),
    leaves_BHS=jnp.asarray(leaves), query_BHSGK=jnp.asarray(query[:, :, start:stop] + bad[..., None]))


@functools.cache
def adder(rule):
  return quick_jit(rule.add)


@functools.cache
def reader(rule):
  return quick_jit(rule.read)


def fold(rule, cuts=(0, LENGTH), **given):
  """The summary after calls that are cut there."""
  summary = rule.init_summary(ROWS, HEADS, KEY, VALUE)
  for start, stop in itertools.pairwise(cuts):
    summary = adder(rule)(summary, evicted(start, stop, **given))
  return summary


def queries(count=5, scale=1.0, seed=1):
  return jnp.asarray(
    np.random.default_rng(seed).normal(0, scale, (ROWS, count, HEADS * GROUP, KEY)).astype(np.float32))


def attention(q_TK, key_SK, value_SV, bias_S=0.0):
  """Output and log-sum-exp in float64."""
  score_TS = np.float64(q_TK) @ np.float64(key_SK).T * q_TK.shape[-1] ** -0.5 + bias_S
  if not score_TS.shape[1]:
    return np.zeros((len(q_TK), value_SV.shape[1])), np.full(len(q_TK), MASKED)
  lse_T = np.logaddexp.reduce(score_TS, axis=1)
  return np.exp(score_TS - lse_T[:, None]) @ np.float64(value_SV), lse_T


def features64(feature_map, head, x_NK):
  """float64: e to the MLP's output, cut softly, over √R; GELU in its tanh form."""
  into_KF, into_F, out_FR, out_R = (np.float64(x[head]) for x in (
    feature_map.in_HKF, feature_map.in_bias_HF, feature_map.out_HFR, feature_map.out_bias_HR))
  hidden_NF = np.float64(x_NK) @ into_KF + into_F
  hidden_NF = 0.5 * hidden_NF * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden_NF + 0.044715 * hidden_NF**3)))
  return np.exp(30 * np.tanh((hidden_NF @ out_FR + out_R) / 30)) / np.sqrt(len(out_R))


def assert_close(got, want, tolerance=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)
