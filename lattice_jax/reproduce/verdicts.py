"""How results are judged: at the paper's size against the published figure, at sample scale by a claim's direction.

The rules, in words, are `RULES`; pages print them.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lattice_jax.reproduce.readers import Values
from lattice_jax.reproduce.rows import Claim

AGREES, DIFFERS, INCOMPARABLE, NOT_RUN = "agrees", "differs", "not comparable", "not run yet"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
RULES = """\
- **At the paper's size** a figure *agrees* with the published one if it differs from it by at most half a unit of the
  last printed digit, or by at most two standard deviations of our own seeds where there are several; otherwise it
  *differs*. Where a bound is published, such as «> 3», it agrees if it keeps the bound. A figure from other data,
  another model or another measure is *not comparable*, and so is every figure where none is quoted.
- **At sample scale** no figure can agree with a paper's; the direction of what the paper claims is judged. Over paired
  repetitions (seeds, prompts, texts) a claim *holds* if the mean difference has the claimed sign and is more than two
  standard errors from zero, it *does not hold* if it is as far from zero on the other side, and is otherwise
  *undecided*, as it is with a single repetition.
- «As good as» holds if the mean difference with two standard errors on either side stays within the stated bound,
  fails if all of that lies outside, and is otherwise undecided; a single repetition decides by itself. A claimed bound
  on one figure is judged by that figure, of several repetitions by their mean and two standard errors.
- The standard error of three seeds is itself uncertain: of differences that are truly zero 9 % would seem to hold, and
  as many to fail.
"""

_ERRORS = 2.0  # standard errors, or deviations
_BOUND = re.compile(r"(>=|<=|>|<)\s*")


@dataclass(frozen=True)
class Judgement:
  """difference: mean of the figure or difference that was judged; error: its standard error, None for a single one."""

  verdict: str
  difference: float | None = None
  error: float | None = None
  repetitions: int = 0


def judge_published(text: str, ours: Sequence[float], incomparable: str = "") -> str:
  """The verdict on figures at the paper's size, one a seed; text: as printed, "" where none is quoted."""
  if not ours:
    return NOT_RUN
  if incomparable or not text:
    return INCOMPARABLE
  mean = statistics.fmean(ours)
  if match := _BOUND.match(text):
    bound = float(text[match.end():])
    keeps = {">": mean > bound, ">=": mean >= bound, "<": mean < bound, "<=": mean <= bound}[match[1]]
    return AGREES if keeps else DIFFERS
  digits = len(text.partition(".")[2])
  allowed = 0.5 * 10**-digits
  if len(ours) > 1:
    allowed = max(allowed, _ERRORS * statistics.stdev(ours))
  # the half unit itself agrees, however the difference is rounded
  return AGREES if abs(mean - float(text)) <= allowed * (1 + 1e-9) else DIFFERS


def judge_claim(claim: Claim, readings: dict[str, Values]) -> Judgement:
  """readings: of each row that the claim reads, by its name; {} where it was not run."""
  if any(not readings[name] for name in (*claim.first.split(" - "), *claim.second.split(" - ")) if name):
    return Judgement(NOT_RUN)
  first = _side(claim.first, readings)
  if claim.kind == "at_least":
    return _judged(list(first.values()), claim.bound, alone=True)
  second = _side(claim.second, readings)
  common = [first[name] - second[name] for name in first if name in second]
  if not common:
    return Judgement(NOT_RUN)
  if claim.kind == "equal":
    return _judged_equal(common, claim.bound)
  return _judged([-value for value in common] if claim.kind == "less" else common, 0.0, alone=False)


def _side(text: str, readings: dict[str, Values]) -> Values:
  """The readings of a row, or of one less another."""
  one, _, other = text.partition(" - ")
  if not other:
    return readings[one]
  return {name: value - readings[other][name] for name, value in readings[one].items() if name in readings[other]}


def _judged(values: Sequence[float], bound: float, *, alone: bool) -> Judgement:
  """Whether the values are above the bound; alone: whether a single one may decide."""
  mean, error = statistics.fmean(values), standard_error(values)
  if error is None:
    verdict = (HOLDS if mean >= bound else FAILS) if alone else UNDECIDED
  elif mean - _ERRORS * error > bound:
    verdict = HOLDS
  else:
    verdict = FAILS if mean + _ERRORS * error < bound else UNDECIDED
  return Judgement(verdict, mean, error, len(values))


def _judged_equal(values: Sequence[float], bound: float) -> Judgement:
  mean, error = statistics.fmean(values), standard_error(values)
  low, high = (mean, mean) if error is None else (mean - _ERRORS * error, mean + _ERRORS * error)
  if low > bound or high < -bound:
    verdict = FAILS
  else:
    verdict = HOLDS if -bound <= low and high <= bound else UNDECIDED
  return Judgement(verdict, mean, error, len(values))


def standard_error(values: Sequence[float]) -> float | None:
  """Of the mean; None for a single value."""
  return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
