"""One update: updates in a call change nothing, micro-batches equal the whole batch, non-finite ones are skipped."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.thorough import further
from tests.training import tiny

STEPS = 7


@pytest.fixture(autouse=True)
def _tiny_decoder(monkeypatch):
  tiny.use_tiny_decoder(monkeypatch)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("per_dispatch", [3, *further(4, 16)])
def test_updates_in_one_call_give_the_same_bits_as_one_by_one(per_dispatch):
  config = tiny.make_config(model__dropout=0.1)
  state, metrics = tiny.run_updates(config, STEPS)
  config = tiny.make_config(model__dropout=0.1, train__steps_per_dispatch=per_dispatch)
  state_of_few_calls, metrics_of_few_calls = tiny.run_updates(config, STEPS)
  tiny.assert_same_bits(state_of_few_calls, state)
  assert metrics_of_few_calls == metrics
  assert state.step == STEPS


@pytest.mark.parametrize("parts", [8, *further(2)])
def test_accumulated_micro_batches_equal_the_whole_batch(parts):
  whole, metrics = tiny.run_updates(tiny.make_config(), 3)
  parted, parted_metrics = tiny.run_updates(tiny.make_config(train__accumulate=parts), 3)
  for name in ("params", "opt_state", "buffers", "memory"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), getattr(parted, name), getattr(whole, name))
  for one, other in zip(parted_metrics, metrics, strict=True):
    # a metric is a mean over what it counts, here micro-batches
    assert one.pop("tokens") * parts == other.pop("tokens")
    assert one == pytest.approx(other, rel=1e-5)


def test_dropout_differs_between_updates_and_repeats_in_a_second_run():
  config = tiny.make_config(model__dropout=0.5, optimizer__learning_rate=1e-12)
  _, metrics = tiny.run_updates(config, 3)
  _, again = tiny.run_updates(config, 3)
  assert metrics == again
  assert len({record["aux_size"] for record in metrics}) == 3


def test_memory_is_empty_at_every_update_unless_sequences_go_on():
  state, _ = tiny.run_updates(tiny.make_config(data__update_len=32), 1)
  assert state.memory == ()
  state, _ = tiny.run_updates(tiny.make_config(), 1)
  assert float(abs(state.memory.mean_BD).max()) > 0


def test_memory_goes_on_along_documents():
  state, _ = tiny.run_updates(tiny.make_config(data__update_len=32, data__rows="documents"), 1)
  assert float(abs(state.memory.mean_BD).max()) > 0


def poison(config):
  """A state whose next update is not finite."""
  state, _ = tiny.run_updates(config, 2)
  params = state.params | {"embedding": state.params["embedding"] * np.inf}
  return state.replace(params=params)


def test_non_finite_update_within_the_budget_changes_nothing_but_its_count():
  config = tiny.make_config(train__nan_skips=2)
  poisoned = jax.device_get(poison(config))
  state, metrics = tiny.run_updates(config, 2, state=jax.device_put(poisoned), first_step=2)
  assert [record["skipped"] for record in metrics] == [1.0, 1.0]
  assert (int(state.step), int(state.skipped)) == (4, 2)
  tiny.assert_same_bits(state.replace(step=0, skipped=0), poisoned.replace(step=0, skipped=0))


def test_non_finite_update_beyond_the_budget_halts_this_and_later_calls():
  config = tiny.make_config(train__nan_skips=1, train__steps_per_dispatch=3)
  poisoned = jax.device_get(poison(config))
  state, metrics = tiny.run_updates(config, 6, state=jax.device_put(poisoned), first_step=2)
  assert [record["halted"] for record in metrics] == [0, 1, 0, 0, 0, 0]
  assert (int(state.step), int(state.skipped)) == (3, 1)
  tiny.assert_same_bits(state.replace(step=0, skipped=0), poisoned.replace(step=0, skipped=0))
