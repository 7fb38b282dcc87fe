"""Windows by what a prompt's last queries look at, and by what is lost later: neither too small nor restless."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.inference.window_choice import ALERT, LOWER, RAISE, Thresholds, Watch, choose_for_prompt, observe

RUNGS = (2, 4, 8)


def make_prompt(*places, length=12):
  """One row; head h of the keys has one token, at places[h], that every probe looks at, in each of two query heads."""
  k_BTHK = np.zeros((1, length, len(places), 4), np.float32)
  for head, place in enumerate(places):
    k_BTHK[0, place, head, 0] = 40
  q_BMQK = np.zeros((1, 2, 2 * len(places), 4), np.float32)
  q_BMQK[..., 0] = 1
  return jnp.asarray(q_BMQK), jnp.asarray(k_BTHK)


def test_each_head_gets_the_smallest_window_that_holds_what_it_looks_at():
  # the last two tokens, 10 and 11, look back 1 and 2 tokens, 3 and 4, and so on; both must see it
  q, k = make_prompt(10, 9, 7, 4, 3, 0)
  window_BH, share_RBQ = choose_for_prompt(q, k, rungs=RUNGS, sinks=1, coverage=0.95)
  assert window_BH.tolist() == [[2, 4, 8, 8, 0, 2]]
  np.testing.assert_allclose(share_RBQ[:, 0, 2 * 1], [0.5, 1, 1], atol=1e-3)


def test_the_head_that_needs_most_decides_for_those_that_share_keys():
  q, k = make_prompt(11, 6)
  q = q[:, 1:]
  k = k.at[0, 7, 0, 1].set(40)
  q = q.at[0, 0, 1].set(jnp.array([0, 1, 0, 0]))
  window_BH, _ = choose_for_prompt(q, k, rungs=RUNGS, sinks=0)
  assert window_BH.tolist() == [[8, 8]]


def test_shares_grow_with_the_window_and_match_the_weights():
  keys = jax.random.split(jax.random.key(0))
  q, k = jax.random.normal(keys[0], (2, 3, 4, 8)), jax.random.normal(keys[1], (2, 10, 2, 8))
  window_BH, share_RBQ = choose_for_prompt(q, k, rungs=RUNGS, sinks=2, coverage=0.9)
  score = np.einsum("BMQK,BTQK->BQMT", q, np.repeat(k, 2, axis=2)) * 8**-0.5
  back_MT = np.arange(7, 10)[:, None] - np.arange(10)
  weight = np.exp(np.where(back_MT >= 0, score, -np.inf))
  weight /= weight.sum(-1, keepdims=True)
  for rung, share_BQ in zip(RUNGS, share_RBQ, strict=True):
    want = (weight * ((back_MT < rung) | (np.arange(10) < 2))).sum(-1).mean(-1)
    np.testing.assert_allclose(share_BQ, want, rtol=1e-5)
  assert np.all(np.diff(share_RBQ, axis=0) >= -1e-6)
  more_BH, _ = choose_for_prompt(q, k, rungs=RUNGS, sinks=2, coverage=0.99)
  as_size = np.where(np.asarray([window_BH, more_BH]) == 0, 99, [window_BH, more_BH])
  assert np.all(as_size[1] >= as_size[0])


@pytest.mark.parametrize(("change", "message"), [
  ({"rungs": (4, 2)}, "must be positive and ascend"), ({"coverage": 0.0}, "must be above 0"),
  ({"rungs": ()}, "must be positive")])
def test_settings_that_make_no_choice_are_refused(change, message):
  q, k = make_prompt(3)
  with pytest.raises(ValueError, match=message):
    choose_for_prompt(q, k, **{"rungs": RUNGS, "sinks": 1, "coverage": 0.9} | change)


def test_prompts_of_one_batch_choose_as_each_does_alone():
  """A short one has fewer probes, and what stands behind its end is not seen."""
  keys = jax.random.split(jax.random.key(1))
  q, k = jax.random.normal(keys[0], (3, 6, 4, 8)), 2 * jax.random.normal(keys[1], (3, 12, 2, 8))
  lengths = (12, 7, 5)
  window_BH, share_RBQ = choose_for_prompt(
    q, k, rungs=RUNGS, sinks=1, coverage=0.7, num_tokens=jnp.array(lengths, jnp.int32))
  for row, length in enumerate(lengths):
    own = q[row:row + 1, -min(6, length):], k[row:row + 1, :length]
    alone_BH, alone_RBQ = choose_for_prompt(*own, rungs=RUNGS, sinks=1, coverage=0.7)
    assert window_BH[row].tolist() == alone_BH[0].tolist()
    np.testing.assert_allclose(share_RBQ[:, row], alone_RBQ[:, 0], atol=1e-6)


def test_more_probes_than_tokens_are_refused():
  q, k = make_prompt(3)
  with pytest.raises(ValueError, match="2 probes are more than the 1 tokens"):
    choose_for_prompt(q, k[:, :1], rungs=RUNGS, sinks=1)


def run(shares, watch=None, **options):
  watch, log = watch or Watch(rung=1), []
  for share in shares:
    watch, change = observe(watch, share, num_rungs=3, **options)
    log += [] if change is None else [change]
  return watch, log


def test_eight_steps_of_much_far_attention_raise_the_window_once():
  assert not run([0.5] * 7)[1]
  watch, (change,) = run([0.5] * 8)
  assert (change.step, change.what, change.before, change.after, change.mean) == (8, RAISE, 1, 2, 0.5)
  assert watch.rung == 2


def test_256_steps_of_little_far_attention_lower_it():
  assert not run([0.01] * 255)[1]
  _, (change,) = run([0.01] * 256)
  assert (change.what, change.before, change.after) == (LOWER, 1, 0)


def test_at_the_ends_of_the_ladder_nothing_moves():
  assert [change.what for change in run([0.5] * 8, Watch(rung=2))[1]] == [ALERT]
  assert not run([0.0] * 1000, Watch(rung=0))[1]


def test_what_no_longer_exists_raises_an_alert_and_not_the_window():
  watch, (change,) = run([0.5] * 8, can_raise=False)
  assert (change.what, change.before, change.after, watch.rung) == (ALERT, 1, 1, 1)


def test_there_is_a_pause_between_changes():
  _, log = run([0.9] * 100, Watch(rung=0))
  assert [change.step for change in log] == [8, 41, 74]
  assert [change.what for change in log] == [RAISE, RAISE, ALERT]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3])
def test_a_steady_share_between_the_thresholds_changes_nothing(share):
  assert not run([share] * 2000)[1]


def test_one_outlier_does_not_move_the_mean_beyond_the_threshold():
  assert not run([*[0.2] * 50, 1.0, *[0.2] * 500])[1]


def test_a_share_that_swings_around_a_threshold_does_not_move_the_window():
  assert not run([0.25, 0.33] * 500)[1]


@pytest.mark.parametrize(("fields", "message"), [
  ({"up": 0.1, "down": 0.1}, "must be below"), ({"pause": 0}, "pause=0"), ({"mean_steps": 0}, "mean_steps=0")])
def test_thresholds_that_could_oscillate_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Thresholds(**fields)


def test_a_share_beyond_one_is_refused():
  with pytest.raises(ValueError, match=r"share=1\.5"):
    observe(Watch(rung=0), 1.5, num_rungs=2)
