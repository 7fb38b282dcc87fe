"""The number of units is that of the formula, and finds what it is to find."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.inference.rollout.planning import units_needed


def test_so_many_units_find_the_difference_as_often_as_asked():
  units, random = units_needed(0.08, 0.03, alpha=0.05, power=0.9), np.random.default_rng(0)
  first, second = 0.08 * random.standard_normal((2, 4000, units))
  z = (second.mean(1) + 0.03 - first.mean(1)) / (0.08 * np.sqrt(2 / units))
  assert (z > 1.6449).mean() == pytest.approx(0.9, abs=0.02)
  assert units_needed(0.08, 0.03) == 154  # 2 · (1.645 + 1.645)² · 0.08² / 0.03²


@pytest.mark.parametrize("changes", [{"spread": 0.0}, {"difference": -1.0}, {"alpha": 1.0}, {"power": 0.0}], ids=str)
def test_what_has_no_answer_is_refused(changes):
  with pytest.raises(ValueError, match="must be positive"):
    units_needed(**{"spread": 1.0, "difference": 1.0} | changes)
