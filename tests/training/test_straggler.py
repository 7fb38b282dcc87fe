"""The host that is slower than the others is named, and no other."""

from __future__ import annotations

import numpy as np
import pytest

from lattice_jax.training.straggler import straggler


@pytest.mark.parametrize(("pace", "sentence"), [
  ([(0.0, 0.0), (0.0, 0.0)], None),
  ([(1.0, 0.0), (1.04, 0.0), (1.05, 0.0)], None),
  ([(1.0, 0.0), (1.0, 0.0), (1.2, 0.0)], "process 2 takes 1.2 s an update, the median process 1 s"),
  ([(1.0, 0.3), (1.0, 0.0), (1.0, 0.0)], "process 0 waits 0.3 s an update for its data, the median process 0 s"),
  ([(1.0, 0.3), (1.0, 0.3), (1.0, 0.3)], None),  # all wait alike: the progress line says it
])
def test_the_slowest_is_named(pace, sentence):
  found = straggler(np.array(pace))
  assert found is None if sentence is None else found.startswith(sentence)
