"""Capitals are the products that define them, and bounds from them hold at all times together."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.inference.rollout.betting import BETS_J, Bets


def defined_capital(numbers, mean, is_above):
  """The definition, in Python's float64: a mixture of products, and the largest that it has been."""
  weights = [bet / sum(BETS_J.tolist()) for bet in BETS_J.tolist()]
  products, largest = [1.0] * len(weights), 1.0
  for x in numbers:
    for place, bet in enumerate(BETS_J.tolist()):
      products[place] *= 1 + bet * (x / mean - 1) if is_above else 1 - bet * (x - mean) / (1 - mean)
    largest = max(largest, sum(weight * product for weight, product in zip(weights, products, strict=True)))
  return largest


@pytest.mark.parametrize("numbers", [[0.9, 0.1, 1.0, 0.0, 0.6, 0.7], [0.2] * 7], ids=["mixed", "equal"])
def test_capital_is_the_product_that_defines_it(numbers):
  candidates, bets = np.array([0.05, 0.5, 0.52, 0.99]), Bets(1, 4)
  for x in numbers:
    bets.add(np.array([0]), np.array([[x]]), candidates[None])
  for place, mean in enumerate(candidates.tolist()):
    assert bets.above_RG[0, place] == pytest.approx(defined_capital(numbers, mean, True), rel=1e-12)
    assert bets.below_RG[0, place] == pytest.approx(defined_capital(numbers, mean, False), rel=1e-12)


@pytest.mark.parametrize(("mean", "above", "below"), [
  (0.3, 15.48027804069803, 1.0), (0.52, 1.464628405448718, 1.0), (0.9, 1.0, 59.947420341598104)])
def test_capital_is_that_of_the_authors_package(mean, above, below):
  """Printed by `betting_mart` of confseq 0.0.11, one call for each bet, weighted and added up."""
  bets = Bets(1, 1)
  for x in (0.9, 0.1, 1.0, 0.0, 0.6, 0.7, 0.95, 0.8, 0.85):
    bets.add(np.array([0]), np.array([[x]]), np.array([[mean]]))
  assert bets.above_RG[0, 0] == pytest.approx(above, rel=1e-12)
  assert bets.below_RG[0, 0] == pytest.approx(below, rel=1e-12)


def test_what_is_known_of_the_mean_is_an_interval():
  bets, candidates = Bets(1, 99), np.arange(1, 100) / 100
  for x in np.random.default_rng(0).random(500):
    bets.add(np.array([0]), np.array([[x]]), candidates[None])
  assert (np.diff(bets.above_RG[0]) <= 0).all() and (np.diff(bets.below_RG[0]) >= 0).all()
  inside = candidates[(bets.above_RG[0] < 20) & (bets.below_RG[0] < 20)]
  assert 0.43 < inside.min() <= 0.5 <= inside.max() < 0.57


@pytest.mark.parametrize(("name", "draw"), [
  ("coin", lambda random, size: (random.random(size) < 0.3).astype(float)),
  ("rare", lambda random, size: np.where(random.random(size) < 0.01, 1.0, 0.29292929)),
  ("even", lambda random, size: 0.6 * random.random(size))], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("side", ["above", "below"])
def test_a_true_mean_is_rarely_ever_excluded_however_often_one_looks(name, draw, side):
  """At level 0.1, looked at after each of 1,500 numbers. A test of fixed size, repeated so, would err in most runs."""
  runs, random, mean = 600, np.random.default_rng(1), 0.3
  bets, rows = Bets(runs, 1), np.arange(runs)
  for _ in range(1500):
    bets.add(rows, draw(random, (runs, 1)), np.array([[mean]]))
  share = (getattr(bets, f"{side}_RG")[:, 0] >= 10).mean()
  assert share <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / runs)
  assert name == "rare" or share > 0.02, "it never errs, so the bounds are wider than they need be"


def test_a_number_that_is_no_bet_changes_nothing():
  bets = Bets(2, 2)
  bets.add(np.array([0, 1]), np.full((2, 2), 0.9), np.array([[0.4, 0.6]]), np.array([[True, False], [False, False]]))
  assert bets.above_RG[0, 0] > 1 and (bets.above_RG[0, 1], *bets.above_RG[1]) == (1, 1, 1)


def test_rollouts_do_not_know_of_one_another_and_start_anew_alone():
  together, alone = Bets(3, 1), Bets(1, 1)
  mean = np.array([[0.5]])
  for x in (0.9, 0.8):
    together.add(np.array([2, 0]), np.array([[x], [0.1]]), mean)
    alone.add(np.array([0]), np.array([[x]]), mean)
  assert together.above_RG[2] == alone.above_RG[0] and together.above_RG[1] == 1
  together.reset(np.array([2]))
  assert together.above_RG[2] == together.below_RG[2] == 1 and together.below_RG[0] > 1


def test_capital_stays_finite_and_decided():
  bets = Bets(1, 1)
  for _ in range(4000):
    bets.add(np.array([0]), np.array([[1.0]]), np.array([[0.01]]))
  assert np.isfinite(bets.above_RG).all() and bets.above_RG[0, 0] > 1e100
