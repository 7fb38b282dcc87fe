"""The bench of the delta rule: chunks and token scans are exact by its own measure."""

from __future__ import annotations

import pytest

from lattice_jax.bench import delta
from lattice_jax.bench.harness import GIGA, measure
from lattice_jax.memories.delta.op import gated_delta, kimi_delta
from tests.thorough import further


@pytest.mark.parametrize(("op", "is_by_channel"), [(kimi_delta, True), *further((gated_delta, False))])
def test_errors_are_those_of_outputs_memory_and_gradients_against_float64(monkeypatch, op, is_by_channel):
  monkeypatch.setitem(delta.SHAPES, "tiny", delta.Shape(op, heads=1, width=3, is_by_channel=is_by_channel))
  monkeypatch.setattr(delta, "CHUNKS", (4,))
  monkeypatch.setattr(delta, "_CHECKPOINT_EVERY", 4)
  results = measure(list(delta.cases("tiny", 12, "fwd+bwd", 1)), rounds=1, max_bytes=GIGA)
  errors = {result.case.name: result.error for result in results}
  assert errors.pop(delta.BLOCKWISE) is None
  assert set(errors) == {"chunks of 4", delta.DEFAULT, delta.SCAN, delta.CHECKPOINTED} and max(errors.values()) < 1e-5
