"""Which tokens may be drawn, against numpy, and that they are drawn with the right probability."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from lattice_jax.inference.sampling import RowSampling, Sampling, filter_logits, sample_rows, sample_token

VOCAB = 7
LOGITS = hypothesis.extra.numpy.arrays(np.int64, VOCAB, elements=strategies.integers(-3, 3))


def support(logits, sampling):
  return set(np.flatnonzero(np.isfinite(filter_logits(jnp.asarray(logits, jnp.float32), sampling))).tolist())


def most_likely_first(logits):
  return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def nucleus(logits, top_p):
  probability = np.exp(logits - logits.max())
  probability /= probability.sum()
  kept, mass = [], 0.0
  for token in most_likely_first(logits):
    kept.append(token)
    mass += probability[token]
    if mass >= top_p:
      break
  return set(kept)


@hypothesis.given(LOGITS, strategies.integers(1, VOCAB + 2))
def test_top_k_keeps_exactly_k_and_the_lower_id_among_equals(logits, top_k):
  assert support(logits, Sampling(top_k=top_k)) == set(most_likely_first(logits)[:top_k])


# 0.3137 and its like are no sums of the few probabilities that integer logits give, so rounding cannot decide
@hypothesis.given(LOGITS, strategies.sampled_from([0.013737, 0.313737, 0.613737, 0.913737, 0.993737]))
def test_nucleus_keeps_the_smallest_set_that_reaches_its_mass(logits, top_p):
  assert support(logits, Sampling(top_p=top_p)) == nucleus(logits.astype(np.float64), top_p)


@hypothesis.given(LOGITS, strategies.sampled_from([1, 3, 5]), strategies.sampled_from([0.313737, 0.813737]))
def test_nucleus_takes_its_mass_from_what_temperature_and_top_k_left(logits, top_k, top_p):
  scaled = logits / 0.7
  kept = most_likely_first(logits)[:top_k]
  masked = np.full(VOCAB, -np.inf)
  masked[kept] = scaled[kept]
  assert support(logits, Sampling(temperature=0.7, top_k=top_k, top_p=top_p)) == nucleus(masked, top_p)


def test_banned_tokens_leave_room_for_the_next_most_likely():
  logits = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, -1.0])
  assert support(logits, Sampling(banned=(0, 2), top_k=2)) == {1, 3}
  assert support(logits - 9, Sampling(banned=(0, 2), top_k=2)) == {1, 3}


def test_draws_follow_the_filtered_distribution():
  logits_A = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
  keys = jax.random.split(jax.random.key(0), 20_000)
  tokens = sample_token(jnp.broadcast_to(logits_A, (20_000, 4)), keys, Sampling(temperature=0.5, top_k=3))
  expected = np.array([0.16, 0.09, 0.04, 0.0]) / 0.29
  np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 20_000, expected, atol=0.015)
  assert not np.any(np.asarray(tokens) == 3)


def test_temperature_zero_takes_the_most_likely_allowed_token():
  logits = jnp.array([[9.0, 1.0, 3.0], [0.0, 2.0, 2.0]])
  tokens = sample_token(logits, jax.random.split(jax.random.key(0), 2), Sampling(temperature=0.0, banned=(0,)))
  np.testing.assert_array_equal(tokens, [2, 1])


@pytest.mark.parametrize(
  ("options", "name"), [({"temperature": -1.0}, "temperature"), ({"top_k": -2}, "top_k"), ({"top_p": 0.0}, "top_p"),
                        ({"top_p": 1.5}, "top_p")], ids=str)
def test_options_out_of_range_are_refused_by_name(options, name):
  with pytest.raises(ValueError, match=name):
    Sampling(**options)


@pytest.mark.parametrize(("option", "value"), [
  ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_k", 2**70),
  ("top_p", 0.0), ("top_p", 1.1), ("top_p", math.nan)], ids=str)
def test_an_option_outside_its_domain_is_refused_in_one_sentence(option, value):
  with pytest.raises(ValueError, match=rf"^{option}=.* must "):
    Sampling(**{option: value})


ROWS = (
  {"temperature": 0.0}, {}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.613737}, {"top_k": 4, "top_p": 0.813737},
  {"temperature": 0.0, "top_k": 2}, {"temperature": 3.0, "top_k": 1}, {"top_k": VOCAB + 2, "top_p": 0.013737})


@pytest.mark.parametrize("chosen", [ROWS, ROWS[:1] * 9, ROWS[:3] * 3], ids=["all", "greedy", "unfiltered"])
def test_rows_are_drawn_each_by_its_own_sampling(chosen):
  logits = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (len(ROWS), VOCAB)), jnp.float32)
  options = [Sampling(banned=(0,), **row) for row in chosen]
  rows = RowSampling(
    temperature_B=jnp.asarray([row.temperature for row in options], jnp.float32),
    top_k_B=jnp.asarray([row.top_k for row in options], jnp.int32),
    top_p_B=jnp.asarray([row.top_p for row in options], jnp.float32))
  draw = jax.jit(lambda keys: sample_rows(logits, keys, rows, (0,)))
  for seed in range(20):
    keys = jax.random.split(jax.random.key(seed), len(ROWS))
    wanted = [int(sample_token(logits[n:n + 1], keys[n:n + 1], row)[0]) for n, row in enumerate(options)]
    assert draw(keys).tolist() == wanted
