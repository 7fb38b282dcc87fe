"""What leaves the windows: every query reads it as of its own time, once, however a text is cut into calls."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config_checks import default_config, parse_config
from lattice_jax.memories.local.config import FAR, LocalConfig, SummaryConfig
from lattice_jax.memories.local.far import far_multiply_adds, find_fold
from lattice_jax.memories.local.op import local_attention
from lattice_jax.ops.attention import MASKED
from lattice_jax.ops.far_summary import FarSummary
from lattice_jax.ops.local import held
from lattice_jax.stored_config import upgrade
from tests.contract.harness import quick_jit
from tests.memories.local import float64
from tests.memories.local.scene import CONFIG, HEADS, KEY, LENGTH, SINKS, VALUE, WINDOWS, cut, tokens

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

  def merge(self, earlier, later):
    return jax.tree.map(jnp.add, earlier, later)

  def read(self, q_BTQK, summary):
    group = q_BTQK.shape[2] // HEADS
    key, value, times = (jnp.repeat(summary[name], group, 1) for name in ("key_BHSK", "value_BHSV", "times_BHS"))
    score = jnp.einsum("BTQK,BQSK->BTQS", q_BTQK, key, precision="highest") * q_BTQK.shape[-1] ** -0.5
    score = jnp.where(times[:, None] > 0, score + jnp.log(jnp.maximum(times, 1))[:, None], MASKED)
    lse = jax.nn.logsumexp(score, -1)
    weight = jnp.where(times[:, None] > 0, jnp.exp(score - lse[..., None]), 0)
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
  out, state = run(PIECES, config=LocalConfig(sinks=SINKS, rungs=(3, 7), windows=WINDOWS, far="mean"))
  near_TQV, near_TQ = float64.attend(q_TQK, k_THK, v_THV, WINDOWS, SINKS)
  want_TQV, shares = near_TQV.copy(), 0
  for t, query in np.ndindex(near_TQ.shape):
    head = query // 2
    far = [j for j in range(SINKS, t + 1) if j not in float64.seen(t, WINDOWS[head], SINKS)]
    if far:
      lse = np.log(len(far)) + q_TQK[t, query] @ k_THK[far, head].mean(0) / np.sqrt(q_TQK.shape[-1])
      share = 1 / (1 + np.exp(near_TQ[t, query] - lse))
      shares += share
      want_TQV[t, query] += share * (v_THV[far, head].mean(0) - near_TQV[t, query])
  np.testing.assert_allclose(out[0], want_TQV, rtol=0, atol=1e-5)
  np.testing.assert_allclose(state.far_share_B, [shares / near_TQ.shape[1]], rtol=1e-5)


@pytest.mark.thorough
def test_attention_matching_in_calls_is_attention_matching_token_by_token():
  """Its slots are fitted to the queries that arrive as their tokens leave, which a call hands over with them."""
  summary = SummaryConfig(blocks=2, span=4, slots=2, stride=2, most_share=0.5)
  config = LocalConfig(sinks=SINKS, rungs=(3, 7), windows=WINDOWS, far="matching", summary=summary)
  got, state = run((LENGTH // 2,) * 2, config=config)
  want, want_state = run((LENGTH,), config=config, impl="reference")
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  np.testing.assert_allclose(state.summary.slots.value_BHMV, want_state.summary.slots.value_BHMV, rtol=0, atol=1e-4)
  assert np.asarray(state.summary.query_BHRGK).any()


def test_nothing_is_far_in_a_text_that_fits():
  """Bit for bit what attention without a summary gives."""
  short, given = cut(tokens(), 0, 9), {"sinks": 2, "rungs": (7,), "windows": (7,)}
  out, state = step(*short, config=LocalConfig(**given, far="mean"), max_len=LENGTH)
  np.testing.assert_array_equal(out, step(*short, config=LocalConfig(**given), max_len=LENGTH)[0])
  assert not np.asarray(state.summary.count_BHJ).any()


def test_every_name_of_the_config_is_a_summary():
  assert find_fold(LocalConfig(), 2) is None
  for name in FAR[1:]:
    fold = find_fold(LocalConfig(far=name), 2)
    assert isinstance(fold, FarSummary) and hash(fold) == hash(find_fold(LocalConfig(far=name), 2))


def test_moments_are_read_with_the_curvature_of_the_config_and_older_runs_with_all_of_it():
  fold = find_fold(LocalConfig(far="moments", summary=SummaryConfig(curvature=0.25, most=2.0, cross=False)), 2)
  assert (fold.curvature, fold.most, fold.cross) == (0.25, 2.0, False)
  assert find_fold(LocalConfig(far="moments"), 2).curvature == 0.5
  for far, then in (("moments", 1.0), ("mean", 0.5)):
    stored = default_config().to_dict()
    stored["model"]["local"]["far"] = far
    del stored["model"]["local"]["summary"]["curvature"]
    assert parse_config(upgrade(stored)).model.local.summary.curvature == then


def test_what_reading_a_summary_costs():
  def cost(**fields):
    far = fields.pop("far")
    return far_multiply_adds(LocalConfig(far=far, summary=SummaryConfig(**fields)), 2, KEY, VALUE)

  one = KEY + VALUE
  assert [cost(far="none"), cost(far="mean"), cost(far="mean", blocks=3)] == [0, one, 3 * one]
  assert cost(far="moments", blocks=2) == 2 * (one + KEY * VALUE) and cost(far="moments", cross=False) == one
  assert cost(far="matching", blocks=2, span=8, slots=4) == (2 * 4 + 8) * one
  assert cost(far="features", features=3, hidden=7) == 3 * (VALUE + 1) + 7 * (KEY + 3) * 1.5


def test_fields_that_contradict_one_another_are_refused_by_their_names_in_the_config():
  raw = default_config().to_dict()
  raw["model"]["pattern"] = ("local",)
  raw["model"]["local"].update({"far": "matching", "summary": {"span": 64, "stride": 5}})
  with pytest.raises(ValueError, match=r"^model\.local\.summary\.stride=5 does not divide model\.local\.summary\.sp"):
    parse_config(raw)
