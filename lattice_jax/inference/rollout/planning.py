"""How many units a comparison needs, before any is measured."""

from __future__ import annotations

import math
from statistics import NormalDist


def units_needed(spread: float, difference: float, *, alpha: float = 0.05, power: float = 0.95) -> int:
  """Units of each arm with which a one-sided test of fixed size finds a difference of means: 2 (z_α + z_β)² σ² / δ².

  spread: σ, the standard deviation between units of an arm. Where both arms read the same units, so that it is that of
  their differences, half as many do. A test that may be looked at after every unit needs more; `simulate` counts them.

  Raises:
    ValueError: spread or difference is not positive, or alpha or power does not lie between 0 and 1.
  """
  if not (spread > 0 and difference > 0 and 0 < alpha < 1 and 0 < power < 1):
    raise ValueError(
      f"spread={spread:g} and difference={difference:g} must be positive, alpha={alpha:g} and power={power:g} lie "
      "between 0 and 1.")
  z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
  return math.ceil(2 * (z * spread / difference) ** 2)
