"""The rules by which figures and claims are judged, at their edges."""

from __future__ import annotations

import pytest

from lattice_jax.reproduce.rows import Claim
from lattice_jax.reproduce.verdicts import (
  AGREES,
  DIFFERS,
  FAILS,
  HOLDS,
  INCOMPARABLE,
  NOT_RUN,
  UNDECIDED,
  judge_claim,
  judge_published,
)


@pytest.mark.parametrize(("text", "ours", "verdict"), [
  ("0.99", [0.995], AGREES), ("0.99", [0.985], AGREES), ("0.99", [0.9951], DIFFERS),
  ("26.6", [26.64], AGREES), ("26.6", [26.7], DIFFERS), ("65", [65.5], AGREES),
  ("0.99", [1.0, 1.03], AGREES),  # 1.015 ± 0.0212: within two deviations
  ("0.99", [0.994, 0.9941], AGREES),  # beyond two deviations, within half a unit
  ("0.99", [1.01, 1.02], DIFFERS),  # 1.015 ± 0.0071
  ("> 3", [3.1], AGREES), ("> 3", [3.0], DIFFERS), (">= 30", [30.0], AGREES), ("< 2", [2.0], DIFFERS),
  ("", [1.0], INCOMPARABLE), ("0.99", [], NOT_RUN), ("", [], NOT_RUN),
])
def test_a_figure_beside_a_published_one(text, ours, verdict):
  assert judge_published(text, ours) == verdict


def test_what_cannot_be_compared_is_not_though_equal():
  assert judge_published("1.0", [1.0], "another measure") == INCOMPARABLE


def judge(kind, first, second=None, bound=0.0):
  claim = Claim("c", "text", "paper", kind, "a", "b" if second is not None else "", bound)
  return judge_claim(claim, {"a": first, "b": second or {}})


def seeds(*values):
  return {str(seed): value for seed, value in enumerate(values)}


@pytest.mark.parametrize(("kind", "first", "second", "bound", "verdict"), [
  ("less", seeds(1.0, 1.1, 1.2), seeds(2.0, 2.2, 2.1), 0.0, HOLDS),
  ("more", seeds(1.0, 1.1, 1.2), seeds(2.0, 2.2, 2.1), 0.0, FAILS),
  ("less", seeds(1.0, 1.1, 1.2), seeds(0.0, 2.2, 2.1), 0.0, UNDECIDED),
  ("less", seeds(1.0), seeds(2.0), 0.0, UNDECIDED),  # one repetition has no error
  ("equal", seeds(1.0), seeds(1.005), 0.01, HOLDS),
  ("equal", seeds(1.0, 1.1), seeds(1.5, 1.61), 0.01, FAILS),
  ("equal", seeds(1.0, 1.1), seeds(0.9, 1.2), 0.01, UNDECIDED),
  ("at_least", {"once": 90.2}, None, 89.0, HOLDS),
  ("at_least", {"once": 88.9}, None, 89.0, FAILS),
  ("at_least", seeds(80.0, 99.0), None, 89.0, UNDECIDED),
])
def test_a_claim_over_repetitions(kind, first, second, bound, verdict):
  assert judge(kind, first, second, bound).verdict == verdict


def test_repetitions_are_paired_by_name_and_others_left_out():
  """Seed by seed the difference is −1 to a hundredth; by means it would drown in the seeds' own spread."""
  judged = judge("less", {"0": 1.0, "1": 5.0, "2": 9.0}, {"2": 10.01, "1": 6.0, "0": 2.0, "3": 0.0})
  assert judged.verdict == HOLDS and judged.repetitions == 3
  assert judged.difference == pytest.approx(1.0033, abs=1e-4)


def test_nothing_in_common_is_not_run():
  assert judge("less", seeds(1.0), {}).verdict == NOT_RUN
  assert judge("less", {"0": 1.0}, {"1": 2.0}).verdict == NOT_RUN


def test_a_margin_that_grows_is_a_difference_of_differences():
  claim = Claim("c", "text", "paper", "grows", "b - a", "d - c")
  readings = {"a": seeds(1, 1), "b": seeds(3.0, 3.1), "c": seeds(1, 1), "d": seeds(2.0, 2.1)}
  judged = judge_claim(claim, readings)
  assert judged.difference == pytest.approx(1.0) and judged.verdict == HOLDS
  assert claim.rows == ("b", "a", "d", "c")
