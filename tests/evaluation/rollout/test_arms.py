"""What two arms say of a unit is what comparing caches on it says, whichever of them reads first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import CacheConfig
from lattice_jax.evaluation.compare import compare
from lattice_jax.evaluation.rollout import arms as arms_module
from lattice_jax.evaluation.rollout.arms import Arm, ask_canary, read_unit
from tests.evaluation.rollout.toy import MODEL, PROMPT_LEN, TOKENS_T, WINDOW, arm, variables
from tests.thorough import further

LAGKV = CacheConfig(policy="lagkv", sinks=2, lag=6, keep=2)
PROMPT_T, ANSWER_T = TOKENS_T[:PROMPT_LEN], TOKENS_T[PROMPT_LEN:]


def log_probabilities():
  """Of every token in the place of each token of the answer: [answer, vocab]."""
  session, log_TA = arm().begin(PROMPT_T), []
  for token in ANSWER_T:
    log_TA.append(jax.nn.log_softmax(session.state.logits_BA[0]))
    session.step(np.array([token], np.int32))
  return np.array(log_TA, np.float64)


@pytest.mark.parametrize("cache", [LAGKV, *further(WINDOW)], ids=["lagkv", "window"])
def test_quality_is_that_of_a_comparison_of_caches(cache):
  pair = {"control": arm(), "treatment": arm(cache)}
  _, compared = compare(
    MODEL, variables(3.0), {"full": CacheConfig(), "other": cache}, TOKENS_T[None], PROMPT_LEN)
  for order in (("control", "treatment"), ("treatment", "control")):
    observed = read_unit(pair, PROMPT_T, ANSWER_T, order=order)
    assert observed.quality.delta_nll == pytest.approx(compared.delta_nll, abs=1e-5) != 0
    assert observed.quality.kl == pytest.approx(compared.kl, abs=1e-5)
    assert observed.quality.agreement == pytest.approx(compared.agreement) and observed.quality.tokens == len(ANSWER_T)
    assert (observed.length, observed.treatment.cache_bytes) == (PROMPT_LEN, compared.cache_bytes)
    assert observed.treatment.cache_bytes < observed.control.cache_bytes


def test_equal_arms_do_not_differ_and_an_arm_alone_has_no_quality():
  pair = {"control": arm(), "treatment": arm()}
  quality = read_unit(pair, PROMPT_T, ANSWER_T).quality
  assert (quality.delta_nll, quality.kl, quality.agreement) == (0, 0, 1)
  for name, other in (("control", "treatment"), ("treatment", "control")):
    alone = read_unit(pair, PROMPT_T, ANSWER_T, order=(name,))
    reading = getattr(alone, name)
    assert alone.quality is None and getattr(alone, other) is None
    assert 0 < reading.next_ms <= reading.longest_ms and reading.first_ms > 0 and reading.is_finite


def test_an_injected_regression_is_the_chance_of_an_even_draw():
  log_TA = log_probabilities()
  share = -np.expm1(-0.05)
  mixed_TA = np.log((1 - share) * np.exp(log_TA) + share / log_TA.shape[1])
  places = np.arange(len(ANSWER_T))
  quality = read_unit({"control": arm(), "treatment": arm(inject=0.05)}, PROMPT_T, ANSWER_T).quality
  assert quality.delta_nll == pytest.approx((log_TA - mixed_TA)[places, ANSWER_T].mean(), abs=1e-5)
  assert quality.kl == pytest.approx((np.exp(log_TA) * (log_TA - mixed_TA)).sum(1).mean(), abs=1e-5)
  assert quality.agreement == 1
  # of likely tokens it costs what it is called
  assert (log_TA - mixed_TA)[places, log_TA.argmax(1)] == pytest.approx(0.05, abs=0.03)


def test_logits_that_are_not_finite_are_told_and_have_no_quality():
  broken = Arm(MODEL, jax.tree.map(lambda leaf: leaf * jnp.nan, variables()), max_len=32, chunk_len=128)
  observed = read_unit({"control": arm(), "treatment": broken}, PROMPT_T, ANSWER_T)
  assert (observed.treatment.is_finite, observed.control.is_finite, observed.quality) == (False, True, None)


def test_what_the_device_refuses_is_an_error_of_that_arm_and_a_mistake_in_the_code_is_raised(monkeypatch):
  pair, begin, errors = {"control": arm(), "treatment": arm(WINDOW)}, Arm.begin, []

  def refuse(self, prompt_T):
    if self.model.cache == WINDOW:
      raise errors[0]
    return begin(self, prompt_T)

  monkeypatch.setattr(arms_module.Arm, "begin", refuse)
  errors[:] = [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")]
  observed = read_unit(pair, PROMPT_T, ANSWER_T)
  assert observed.treatment.is_error and not observed.control.is_error and observed.quality is None
  errors[:] = [KeyError("a mistake")]
  with pytest.raises(KeyError):
    read_unit(pair, PROMPT_T, ANSWER_T)


def test_a_canary_is_right_if_every_scored_token_is_the_most_likely_one():
  answer_T, session = [], arm().begin(PROMPT_T)
  for _ in range(4):
    answer_T.append(int(session.state.logits_BA.argmax()))
    session.step(np.array(answer_T[-1:], np.int32))
  answer_T, scored_T = np.array(answer_T, np.int32), np.array([False, True, True, True])
  pair = {"control": arm(), "treatment": arm(WINDOW)}
  canary = ask_canary(pair, PROMPT_T, answer_T, scored_T).canary
  assert (canary.control, canary.treatment) == (True, False)
  wrong_T = answer_T.copy()
  wrong_T[3] += 1
  assert not ask_canary(pair, PROMPT_T, wrong_T, scored_T).canary.control
  assert ask_canary(pair, PROMPT_T, wrong_T, np.array([True, True, True, False])).canary.control
