"""What leaves the windows: every query reads it as of its own time, once, however a text is cut into calls."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.memories.local.config import FAR, LocalConfig
from lattice_jax.memories.local.far import RunningMean, find_fold
from lattice_jax.memories.local.op import local_attention
from lattice_jax.ops.attention.fold import Fold
from lattice_jax.ops.local import FarSummary, held
from tests.contract.harness import quick_jit
from tests.memories.local import float64
from tests.memories.local.scene import CONFIG, HEADS, LENGTH, SINKS, WINDOWS, cut, tokens

PIECES = (13, 13, 13, 1)
step = quick_jit(local_attention, "config", "fold", "max_len", "impl")


@dataclass(frozen=True)
class Everything:
  """A summary that loses nothing: keys and values by position, of so many tokens at most."""

  room: int = LENGTH

  def init_summary(self, batch, heads, key_dim, value_dim):
    rows = batch, heads, self.room
    return {"key_BHSK": jnp.zeros((*rows, key_dim)), "value_BHSV": jnp.zeros((*rows, value_dim)),
            "times_BHS": jnp.zeros(rows)}

  def add(self, summary, evicted):
    here_BHSR = jax.nn.one_hot(jnp.where(evicted.leaves_BHS, evicted.position_BHS, -1), self.room)
    put = functools.partial(jnp.einsum, "BHSR,BHSK->BHRK", here_BHSR, precision="highest")
    return {"key_BHSK": summary["key_BHSK"] + put(evicted.key_BHSK),
            "value_BHSV": summary["value_BHSV"] + put(evicted.value_BHSV),
            "times_BHS": summary["times_BHS"] + here_BHSR.sum(2)}

  def read(self, q_BTQK, summary):
    group = q_BTQK.shape[2] // HEADS
    key, value, times = (jnp.repeat(summary[name], group, 1) for name in ("key_BHSK", "value_BHSV", "times_BHS"))
    score = jnp.einsum("BTQK,BQSK->BTQS", q_BTQK, key, precision="highest") * q_BTQK.shape[-1] ** -0.5
    score = jnp.where(times[:, None] > 0, score + jnp.log(jnp.maximum(times, 1))[:, None], -jnp.inf)
    lse = jax.nn.logsumexp(score, -1)
    weight = jnp.exp(score - jnp.maximum(lse, -1e30)[..., None])
    return jnp.einsum("BTQS,BQSV->BTQV", weight, value, precision="highest"), lse


def run(pieces, **given):
  state, outs, start = None, [], 0
  for length in pieces:
    out, state = step(*cut(tokens(), start, start + length), state, max_len=LENGTH, **given)
    outs, start = [*outs, out], start + length
  return jnp.concatenate(outs, 1), state


def test_a_summary_that_loses_nothing_gives_full_attention():
  """So each query reads all that is older than its own window, and nothing twice."""
  out, state = run(PIECES, config=CONFIG, fold=Everything())
  full, _ = float64.attend(*(x[0] for x in tokens()), (0,) * HEADS, SINKS)
  np.testing.assert_allclose(out[0], full, rtol=0, atol=1e-5)
  for head, window in enumerate(WINDOWS):
    times_S = np.asarray(state.summary["times_BHS"])[0, head]
    far = [j for j in range(LENGTH) if window and SINKS <= j < LENGTH - window]
    assert np.flatnonzero(times_S).tolist() == far and times_S.max(initial=0) <= 1
    ring = state.rings[(0, 1, 2, 0)[head]].num_slots
    held_S = np.asarray(held(state.seen_B, ring, sinks=SINKS, window=window))[0]
    assert sorted([*far, *held_S[held_S >= 0]]) == list(range(LENGTH)), "kept or summarised, once each"


def test_the_mean_is_that_of_the_definition_in_float64():
  q_TQK, k_THK, v_THV = (np.float64(x[0]) for x in tokens())
  out, _ = run(PIECES, config=LocalConfig(sinks=SINKS, rungs=(3, 7), windows=WINDOWS, far="mean"))
  near_TQV, near_TQ = float64.attend(q_TQK, k_THK, v_THV, WINDOWS, SINKS)
  want_TQV = near_TQV.copy()
  for t, query in np.ndindex(near_TQ.shape):
    head = query // 2
    far = [j for j in range(SINKS, t + 1) if j not in float64.seen(t, WINDOWS[head], SINKS)]
    if far:
      lse = np.log(len(far)) + q_TQK[t, query] @ k_THK[far, head].mean(0) / np.sqrt(q_TQK.shape[-1])
      share = 1 / (1 + np.exp(near_TQ[t, query] - lse))
      want_TQV[t, query] += share * (v_THV[far, head].mean(0) - near_TQV[t, query])
  np.testing.assert_allclose(out[0], want_TQV, rtol=0, atol=1e-5)


def test_nothing_is_far_in_a_text_that_fits():
  """Bit for bit what attention without a summary gives."""
  short, given = cut(tokens(), 0, 9), {"sinks": 2, "rungs": (7,), "windows": (7,)}
  out, state = step(*short, config=LocalConfig(**given, far="mean"), max_len=LENGTH)
  np.testing.assert_array_equal(out, step(*short, config=LocalConfig(**given), max_len=LENGTH)[0])
  assert not np.asarray(state.summary.count_BH).any()


def test_every_name_of_the_config_is_a_summary():
  assert find_fold("none") is None
  for name in FAR[1:]:
    assert isinstance(find_fold(name), FarSummary) and isinstance(find_fold(name), Fold)
    assert find_fold(name) == find_fold(name) and hash(find_fold(name)) == hash(find_fold(name))
  assert RunningMean() == RunningMean()
