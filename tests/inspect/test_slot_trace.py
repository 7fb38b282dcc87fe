"""The slot audit's numbers: by hand, and against the op's own definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.inspect.slot_trace import SlotInputs, trace_slots
from lattice_jax.inspect.slot_writes import ages, summarize
from lattice_jax.memories.lattice.op import OBJECTIVES, Form, LatticeSlots, Rule, empty_state, lattice
from lattice_jax.memories.lattice.reference import step_token
from lattice_jax.memories.lattice.tokens import Tokens

T, H, M, V = 9, 2, 3, 4


def random_inputs(seed=0, **changes):
  keys = jax.random.split(jax.random.key(seed), 5)
  fields = {
    "k_THM": jax.random.normal(keys[0], (T, H, M)) / 2, "v_THV": jax.random.normal(keys[1], (T, H, V)),
    "step_TH": jax.random.uniform(keys[2], (T, H)), "forget_TH": 1 - jax.random.uniform(keys[3], (T, H)) / 4,
    "start_HMV": jax.random.normal(keys[4], (H, M, V))}
  return SlotInputs(**fields | changes)


def single_head(k_TM, v_TV, start_MV, step=1.0):
  k_TM, v_TV, start_MV = (np.asarray(x, np.float32) for x in (k_TM, v_TV, start_MV))
  return SlotInputs(
    k_THM=jnp.asarray(k_TM[:, None]), v_THV=jnp.asarray(v_TV[:, None]), step_TH=jnp.full((len(k_TM), 1), step),
    forget_TH=None, start_HMV=jnp.asarray(start_MV[None]))


RULES = [Rule(objective) for objective in OBJECTIVES] + [
  Rule(state="accumulated"), Rule(state="returning"), Rule(is_projected=False)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.objective}-{rule.state}-{rule.is_projected}")
def test_the_replay_is_the_recurrence(rule):
  """Angles, lengths and what is kept of every slot, from slots before and after each token by the definition."""
  inputs = random_inputs()
  trace = trace_slots(inputs, rule)
  unit_HMV = inputs.start_HMV / jnp.linalg.norm(inputs.start_HMV, axis=-1, keepdims=True)
  slots = start = LatticeSlots(unit_HMV[None], jnp.ones((1, H, M)) if rule.state == "accumulated" else None)
  for t in range(T):
    before = np.asarray(slots.unit_BHMV[0])
    token = Tokens(*(x[None] for x in (
      inputs.k_THM[t], inputs.k_THM[t], inputs.v_THV[t], inputs.step_TH[t], inputs.forget_TH[t])))
    slots = step_token(rule, slots, token, start)
    after = np.asarray(slots.unit_BHMV[0])
    cosine = (before * after).sum(-1)
    # half the chord: the arc cosine of nearly one is not precise
    np.testing.assert_allclose(
      np.sin(trace.turn_THM[t] / 2), np.linalg.norm(after - before, axis=-1) / 2, atol=2e-6)
    value = np.asarray(inputs.v_THV[t]) / np.linalg.norm(inputs.v_THV[t], axis=-1, keepdims=True)
    np.testing.assert_allclose(trace.novel_THM[t], 1 - np.einsum("hmv,hv->hm", before, value) ** 2, atol=1e-5)
    gram = after @ after.swapaxes(1, 2)
    eigenvalues = np.linalg.eigvalsh(gram)
    np.testing.assert_allclose(trace.rank_TH[t], eigenvalues.sum(-1) ** 2 / (eigenvalues**2).sum(-1), rtol=1e-4)
    if slots.norm_BHM is not None:
      np.testing.assert_allclose(trace.norm_THM[t], slots.norm_BHM[0], rtol=1e-5)
    if rule.objective == "similarity":  # h is the value, so what is kept can be seen in a direction across it
      across = before - value[:, None] * np.einsum("hmv,hv->hm", before, value)[..., None]
      np.testing.assert_allclose(
        trace.keep_THM[t], (after * across).sum(-1) / (before * across).sum(-1), atol=1e-4)
    assert (cosine <= 1 + 1e-5).all()
  np.testing.assert_allclose(trace.similarity_HMM, gram, atol=1e-5)


def test_the_replay_ends_where_the_op_does():
  inputs, rule = random_inputs(), Rule()
  state = empty_state(1, H, M, V, rule=rule, form=Form())
  _, state = lattice(
    inputs.k_THM[None], inputs.k_THM[None], inputs.v_THV[None], inputs.step_TH[None], inputs.forget_TH[None],
    inputs.start_HMV, state, jnp.zeros((1, T), jnp.int32), jnp.ones((1, T), bool), rule=rule, form=Form())
  unit_HMV = np.asarray(state.slots.unit_BHMV[0])
  np.testing.assert_allclose(
    trace_slots(inputs, rule).similarity_HMM, unit_HMV @ unit_HMV.swapaxes(1, 2), atol=1e-5)


def test_a_slot_written_once_is_as_old_as_the_write():
  k_TM = np.zeros((T, 3))
  k_TM[4, 1], k_TM[6, 2] = 1.0, 1.0
  trace = trace_slots(single_head(k_TM, np.eye(4)[np.zeros(T, int) + 3], np.eye(4)[:3]), Rule())
  age_TM = ages(trace.turn_THM, 0.1)[:, 0]
  assert age_TM[-1].tolist() == [T, T - 1 - 4, T - 1 - 6]
  assert age_TM[:, 1].tolist() == [1, 2, 3, 4, 0, 1, 2, 3, 4]
  assert trace.turn_THM[4, 0].tolist() == [0, pytest.approx(np.pi / 4), 0], "a full step halves a right angle"


def test_equal_slots_have_similarity_one_and_rank_one():
  trace = trace_slots(single_head(np.full((T, 2), 0.5), np.eye(4)[np.arange(T) % 4], np.ones((2, 4))), Rule())
  np.testing.assert_allclose(trace.similarity_HMM, 1, atol=1e-6)
  np.testing.assert_allclose(trace.overlap_TH, 1, atol=1e-6)
  np.testing.assert_allclose(trace.rank_TH, 1, atol=1e-5)


def test_a_value_that_a_slot_holds_is_redundant_there_and_novel_elsewhere():
  k_TM, v_TV = [[1, 0], [0, 1], [0.6, 0.8]], np.array([[2, 0, 0]] * 3)
  trace = trace_slots(single_head(k_TM, v_TV, np.eye(3)[:2], step=0.0), Rule("similarity"))
  np.testing.assert_allclose(trace.novel_THM[:, 0], [[0, 1]] * 3, atol=1e-6)
  np.testing.assert_allclose(trace.novel_TH[:, 0], [0, 1, 0.64], atol=1e-6)
  np.testing.assert_allclose(trace.keep_THM, 1)


def test_nothing_written_is_neither_novel_nor_nan():
  trace = trace_slots(single_head(np.zeros((T, 1)), np.zeros((T, 4)), np.ones((1, 4))), Rule())
  for values in (trace.novel_THM, trace.novel_TH, trace.turn_THM, trace.overlap_TH, trace.share_THM):
    np.testing.assert_array_equal(values, 0)


def test_a_summary_names_the_tokens_that_wrote_most_and_the_nearest_slot():
  k_TM = np.zeros((6, 3))
  k_TM[1, 0], k_TM[3, 0], k_TM[4, 2] = 0.2, 1.0, 0.9
  start = [[1, 0, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 1, 0]]
  trace = trace_slots(single_head(k_TM, np.eye(4)[[3] * 6], start), Rule("similarity"))
  first, second, third = summarize(5, trace, list("abcdef"), threshold=0.3, top=2)
  assert [(write.position, write.token) for write in first.top] == [(3, "d"), (1, "b")]
  assert (first.top[0].before, first.top[0].after) == ("abc", "ef")
  assert (first.writes, first.age, first.layer, first.slot) == (1, 2, 5, 0)
  assert (second.top, second.age, second.nearest) == ((), 6, 0)
  assert [third.top[0].token, third.nearest] == ["e", 0], "both ends hold the fourth direction now"
