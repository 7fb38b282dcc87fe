"""What is left of a text under every arm: against float64, and nothing is lost or counted twice."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.inspect.local.arms import (
  BOTH,
  CALL,
  LAG,
  MATCHING,
  MEAN,
  MOMENTS,
  NAMES,
  PICKS,
  SINKS,
  WINDOW,
  Arm,
  Heads,
  candidates,
)
from lattice_jax.inspect.local.needle import TAIL, _scores, plant
from lattice_jax.inspect.local.stream import (
  EVERY,
  Compared,
  _leaving,
  compare,
  exact_outputs,
  positions,
  relative_errors,
  spread_scores,
)
from lattice_jax.ops.far_summary import Mean
from lattice_jax.ops.far_summary.compact import Slots
from lattice_jax.ops.far_summary.read import read_slots
from tests.inspect.local import tiny

SMOLLM2 = Heads(heads=3, group=3, key_dim=64, value_dim=64)
WINDOW_LEN = 24


@dataclass(frozen=True)
class Everything:
  """A summary that forgets nothing, with a place for each token; what came twice counts twice."""

  length: int = tiny.LENGTH

  def init_summary(self, batch, heads, key_dim, value_dim):
    shape = batch, heads, self.length
    return Slots(jnp.zeros((*shape, key_dim)), jnp.zeros((*shape, value_dim)), jnp.zeros(shape))

  def add(self, summary, evicted):
    is_here = evicted.leaves_BHS[..., None] & (evicted.position_BHS[..., None] == jnp.arange(self.length))
    count = is_here.sum(2)
    source = is_here.argmax(2)
    take = (jnp.take_along_axis(x, source[..., None], 2) for x in (evicted.key_BHSK, evicted.value_BHSV))
    new = (jnp.where(count[..., None] > 0, x, old) for x, old in zip(
      take, (summary.key_BHMK, summary.value_BHMV), strict=True))
    return Slots(*new, summary.weight_BHM + count)

  def merge(self, earlier, later):
    return jax.tree.map(jnp.add, earlier, later)

  def read(self, q, summary):
    return read_slots(q, summary)


def test_full_attention_is_that_of_float64():
  got, given = np.asarray(tiny.exact()), tiny.inputs()
  for number, time in enumerate(positions(given)):
    for layer, head in np.ndindex(2, 2):
      want = tiny.attention(given, layer, head, time, np.arange(time + 1))
      np.testing.assert_allclose(got[layer, number, head], want, rtol=1e-4, atol=1e-5)


def seen_by(time, window):
  """Sinks, and the tokens of the window after those that left before the call."""
  first = max(SINKS, (time // CALL + 1) * CALL - window)
  return np.array([*range(min(SINKS, time + 1)), *range(first, time + 1)])


def test_a_window_sees_the_sinks_and_its_tokens():
  given = tiny.inputs()
  compared = compare(Arm(WINDOW), WINDOW_LEN, given, tiny.exact())
  for number, time in enumerate(positions(given)):
    seen = seen_by(time, WINDOW_LEN)
    assert len(seen) <= SINKS + WINDOW_LEN
    for layer, head in np.ndindex(2, 2):
      whole = tiny.attention(given, layer, head, time, np.arange(time + 1))
      off = tiny.attention(given, layer, head, time, seen) - whole
      np.testing.assert_allclose(compared.off[number, layer, head], off @ off, rtol=1e-3, atol=1e-6)
      np.testing.assert_allclose(compared.whole[number, layer, head], whole @ whole, rtol=1e-4)
  np.testing.assert_array_equal(compared.off, compared.off_alone)


@pytest.mark.parametrize("picks", [0, 8])
def test_every_token_is_in_exactly_one_of_sinks_picks_window_and_summary(picks):
  """Then attention to all parts is full attention."""
  compared = compare(Arm("", Everything(), picks), WINDOW_LEN + 40 * (picks > 0), tiny.inputs(), tiny.exact())
  assert float((compared.off / compared.whole).max()) < 1e-8 < float((compared.off_alone / compared.whole).max())


def test_a_mean_stands_for_what_has_left():
  given, rule = tiny.inputs(), Mean()
  compared = compare(Arm(MEAN, rule), WINDOW_LEN, given, tiny.exact())
  time = tiny.LENGTH - 1
  seen = seen_by(time, WINDOW_LEN)
  far = np.setdiff1d(np.arange(time + 1), seen)
  key, value = (np.float64(x[1, :, 0]) for x in (given.k_LTHK, given.v_LTHV))
  score = np.append(key[seen] @ np.float64(given.q_LTQK[1, time, 1]) / 4,
                    key[far].mean(0) @ np.float64(given.q_LTQK[1, time, 1]) / 4 + np.log(len(far)))
  weight = np.exp(score) / np.exp(score).sum()
  out = weight @ np.concatenate([value[seen], value[far].mean(0)[None]])
  off = out - tiny.attention(given, 1, 1, time, np.arange(time + 1))
  np.testing.assert_allclose(compared.off[-1, 1, 1], off @ off, rtol=1e-3)


def test_tokens_leave_with_the_queries_that_came_a_window_later_but_for_the_call_that_reads():
  given, call = tiny.inputs(), 9
  first = (call + 1) * CALL - WINDOW_LEN
  left = _leaving(given, jnp.asarray(first - CALL), jnp.asarray(first), WINDOW_LEN)
  place = np.asarray(left.position_BHS[0, 0])
  np.testing.assert_array_equal(place, np.arange(first - CALL, first))
  assert np.asarray(left.leaves_BHS).all()
  np.testing.assert_array_equal(left.key_BHSK[:, 0], given.k_LTHK[:, place, 0])
  for head in range(2):
    np.testing.assert_array_equal(left.query_BHSGK[:, 0, :, head], given.q_LTQK[:, place + WINDOW_LEN - CALL, head])
  assert (place + WINDOW_LEN - CALL).max() == call * CALL - 1


def test_picks_are_the_tokens_with_the_highest_scores():
  given, window, number = tiny.inputs(), 2 * LAG, 6
  score_LHT = np.asarray(spread_scores(given))
  assert (score_LHT[:, :, :SINKS] == 0).all() and (score_LHT[:, :, SINKS + 4 * LAG:] == 0).all()
  first = tiny.LENGTH - window
  rank_T = np.argsort(-score_LHT[0, 0, SINKS:first]) + SINKS
  for place, is_kept in ((rank_T[0], True), (rank_T[number - 1], True), (rank_T[number], False), (rank_T[-1], False)):
    compared = compare(Arm(PICKS, None, number), window, given, tiny.exact(), int(place))
    assert bool(compared.is_kept[-1, 0, 0]) == is_kept
    assert np.asarray(compared.is_kept)[place // CALL:place // CALL + window // CALL - 1].all()


def test_scores_are_those_of_lagkv():
  key = np.float64(tiny.inputs().k_LTHK[1, SINKS:SINKS + 2 * LAG, 0]).reshape(2, LAG, -1)
  value = np.float64(tiny.inputs().v_LTHV[1, SINKS:SINKS + 2 * LAG, 0]).reshape(2, LAG, -1)
  want = 0
  for own, following in (key, value):
    spread = ((own - following.min(0)) / (following.max(0) - following.min(0))).std(-1, ddof=1)
    want = want + np.exp(spread) / np.exp(spread).sum()
  np.testing.assert_allclose(spread_scores(tiny.inputs())[1, 0, SINKS:SINKS + LAG], want, rtol=1e-4)


def test_errors_are_relative_to_all_tokens_of_a_range():
  off, whole = np.array([1.0, 4.0, 9.0]), np.array([10.0, 8.0, 8.0])
  part = Compared(*(x[:, None, None] for x in (off, off / 4, whole, off)))
  is_in = np.array([False, True, True])
  np.testing.assert_allclose(relative_errors([part, part], is_in), [[np.sqrt(13 / 16)]] * 2)
  np.testing.assert_allclose(relative_errors([part], is_in, alone=True), [[np.sqrt(13 / 64)]])


@pytest.mark.parametrize("budget", [100, 128, 300])
def test_arms_fill_their_budget_and_no_more(budget):
  for name in NAMES:
    for arm in candidates(name, budget, SMOLLM2):
      used = (SINKS + arm.window(budget, SMOLLM2)) * SMOLLM2.token_bytes + arm.far_bytes(SMOLLM2)
      assert 0 <= budget * 512 - used < 512
      assert arm.window(budget, SMOLLM2) >= arm.least_window
      assert (arm.rule is None) == (name in (WINDOW, PICKS)) and bool(arm.picks) == (name in (PICKS, BOTH))
  assert candidates(MOMENTS, 30, SMOLLM2) == [] and len(candidates(MATCHING, 300, SMOLLM2)) == 4


def test_a_needle_has_its_weight_and_leaves_other_scores_alone():
  given, place = tiny.inputs(), 40
  rng = np.random.default_rng(0)
  direction = rng.normal(size=16)
  direction /= np.linalg.norm(direction)
  flat = given.replace(
    k_LTHK=given.k_LTHK - ((given.k_LTHK @ direction)[..., None] * direction).astype(np.float32))
  planted, weight_LTQ = plant(flat, place, rng)
  assert 0.75 < float(weight_LTQ.mean()) < 0.95
  before, after = (np.asarray(_scores(each)) for each in (flat, planted))
  others = np.delete(np.arange(tiny.LENGTH), place)
  np.testing.assert_allclose(after[..., others], before[..., others], atol=2e-4)
  np.testing.assert_array_equal(planted.q_LTQK[:, :-TAIL], flat.q_LTQK[:, :-TAIL])
  is_tail = positions(planted) >= tiny.LENGTH - TAIL
  exact = exact_outputs(planted)
  off = {arm.name: float(relative_errors([compare(arm, WINDOW_LEN, planted, exact)], is_tail).mean()) for arm in (
    Arm(WINDOW), Arm("everything", Everything()))}
  assert off[WINDOW] > 0.8 and off["everything"] < 1e-4


def test_compared_tokens_are_evenly_spread():
  assert positions(tiny.inputs()).tolist() == list(range(EVERY - 1, tiny.LENGTH, EVERY)) and CALL % EVERY == 0
