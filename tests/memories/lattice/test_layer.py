"""What Lattice's metrics mean, and which configs of it are refused; the laws are in tests/contract."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config_checks import default_config, parse_config
from lattice_jax.memories.lattice.config import LatticeConfig
from lattice_jax.memories.lattice.layer import measure_rounds, measure_slots
from lattice_jax.memories.lattice.op import Form, Rounds, Rule, empty_state
from lattice_jax.types import whole_segment
from tests.contract.harness import quick_jit

SLOTS, VALUE = 3, 4


@functools.cache
def compiled(objective):
  return quick_jit(functools.partial(measure_slots, LatticeConfig(objective=objective)))


def measured(slots_MV, v_V, k_M=(1.0, 0.0, 0.0), objective="similarity"):
  """Means for one row of one head whose last token has this value and code; the other row has no tokens."""
  state = empty_state(2, 1, SLOTS, VALUE, rule=Rule(objective), form=Form())
  unit_BHMV = np.zeros((2, 1, SLOTS, VALUE), np.float32)
  unit_BHMV[0, 0] = slots_MV
  state = state.replace(slots=state.slots.replace(unit_BHMV=unit_BHMV))
  segment = whole_segment(2, 2).replace(valid_BT=np.array([[True, True], [False, False]]))
  k_BTHM = np.broadcast_to(np.array(k_M, np.float32), (2, 2, 1, SLOTS))
  v_BTHV = np.broadcast_to(np.array(v_V, np.float32), (2, 2, 1, VALUE))
  step_BTH = np.array([[[0.25], [0.75]], [[9.0], [9.0]]], np.float32)
  metrics = compiled(objective)(step_BTH, k_BTHM, v_BTHV, state, segment)
  return {name: float(total / count) for name, (total, count) in metrics.items()}


def test_rank_counts_directions():
  value = (0.0, 0.0, 0.0, 1.0)
  assert measured(np.eye(SLOTS, VALUE), value)["slot_rank"] == pytest.approx(SLOTS)
  assert measured(np.tile(np.eye(VALUE)[0], (SLOTS, 1)), value)["slot_rank"] == pytest.approx(1)


@pytest.mark.parametrize(("value", "novelty"), [((0, 0, 2.0, 2.0), 1), ((3.0, 0, 0, 0), 0), ((1.0, 0, 0, 1.0), 0.5)])
def test_novelty_is_the_share_across_the_slot_that_is_written(value, novelty):
  assert measured(np.eye(SLOTS, VALUE), value)["slot_novelty"] == pytest.approx(novelty, abs=1e-6)


def test_means_are_over_valid_tokens_and_rows_with_tokens():
  found = measured(np.eye(SLOTS, VALUE) * np.array([[1.0], [1.0], [0.9]]), (1.0, 0.0, 0.0, 1.0))
  assert found["slot_step"] == pytest.approx(0.5)
  assert found["slot_norm_error"] == pytest.approx(0.1)


def test_rounds_are_means_over_chunks_and_absent_from_forms_without():
  metrics = measure_rounds(Rounds(jnp.array([2, 4, 3], jnp.int32), jnp.array([0.1, 0.4, 0.1])))
  assert {name: float(total / count) for name, (total, count) in metrics.items()} == pytest.approx(
    {"rounds": 3, "rounds_change": 0.2})
  assert not measure_rounds(None)


@pytest.mark.parametrize(("changes", "message"), [
  ({"objective": "decode"}, r"objective='decode' is not one of decoding, .* Did you mean 'decoding'"),
  ({"objective": "encoding", "unit_values": False}, r"unstable for long values; set model\.lattice\.unit_values=True"),
  ({"state": "accumulated", "form": "live"}, r"form='live' is one of .*retracted.* or form='scan'"),
  ({"state": "returning"}, r"needs the gate by which slots go back; set model\.lattice\.forget=True"),
  ({"max_step": 3.0}, r"max_step=3\.0 and forget=False allow steps of 3, .* use max_step=2\.0"),
  ({"max_step": 1.5, "forget": True}, r"allow steps of 3, .* use max_step=1\.0"),
  ({"form": "parallel", "forget": True}, r"exact for steps of at most 1, .* allow 2; use max_step=0\.5, or"),
  ({"rounds": -1}, r"model\.lattice\.rounds=-1 must be 0 or more"),
  ({"conv_width": -1}, r"model\.lattice\.conv_width=-1 must be 0 or more"),
  ({"slots": 0}, r"model\.lattice\.slots=0 must be positive"),
], ids=str)
def test_what_cannot_run_is_refused_in_one_sentence(changes, message):
  raw = default_config().to_dict()
  raw["model"]["pattern"] = ("lattice",)
  raw["model"]["lattice"].update(changes)
  with pytest.raises(ValueError, match=message) as caught:
    parse_config(raw)
  assert "\n" not in str(caught.value)
