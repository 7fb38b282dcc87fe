"""The two arms of a rollout: each reads a unit as it would be served, and both are compared on its tokens."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lattice_jax.cache.convert import uncompressed
from lattice_jax.cache.policy import make_policy
from lattice_jax.config import ModelConfig
from lattice_jax.evaluation.cache_contents import row_bytes
from lattice_jax.inference.rollout.assignment import CONTROL, TREATMENT
from lattice_jax.inference.rollout.observation import Canary, Observation, Quality, Reading
from lattice_jax.inference.session import Session
from lattice_jax.marks import Marker
from lattice_jax.sharding import tree_bytes

ARMS = (CONTROL, TREATMENT)


@dataclass(frozen=True, eq=False)
class Arm:
  """A model with its cache. marker: says which tokens are anchors. max_len: tokens of the longest unit.

  inject: nats by which its loss is raised, to see whether a rollout notices: with the chance 1 − exp(−inject) the next
  token is drawn evenly from all instead of from the model. Tokens that are rarer than that even draw gain by it.
  """

  model: ModelConfig
  variables: Any
  max_len: int
  chunk_len: int
  marker: Marker | None = None
  inject: float = 0.0

  def begin(self, prompt_T: np.ndarray) -> Session:
    """Reads a prompt as generation does: all of it, and then the cache drops what its policy drops."""
    reading = writing = self.model
    if make_policy(self.model.cache).drops and not self.model.cache.call_len:
      reading, writing = uncompressed(self.model), replace(self.model, cache=replace(self.model.cache, call_len=1))
    session = Session(
      reading, self.variables, batch=1, max_len=self.max_len, chunk_len=self.chunk_len, marker=self.marker)
    session.read([prompt_T])
    return session if reading is writing else session.compress(writing.cache, self.max_len)

  def log_probabilities(self, session: Session) -> jax.Array:
    """Of each token to be the next one: [1, vocab]."""
    return _log_probabilities(session.state.logits_BA, jnp.float32(self.inject))


class _Reading:
  """One arm in the course of a unit, with the time that each step took."""

  def __init__(self, arm: Arm, prompt_T: np.ndarray):
    self._arm, start = arm, time.perf_counter()
    self.session = arm.begin(prompt_T)
    jax.block_until_ready(self.session.state.logits_BA)
    self.first_ms, self.next_ms = 1000 * (time.perf_counter() - start), []
    self.is_finite = True

  def log_probabilities(self) -> jax.Array:
    log_BA = self._arm.log_probabilities(self.session)
    self.is_finite &= bool(jnp.isfinite(log_BA.max()))
    return log_BA

  def step(self, token: int) -> None:
    token_B, start = np.array([token], np.int32), time.perf_counter()
    self.session.step(token_B)
    jax.block_until_ready(self.session.state.logits_BA)
    self.next_ms.append(1000 * (time.perf_counter() - start))

  def finish(self) -> Reading:
    caches = self.session.caches
    return Reading(
      first_ms=self.first_ms, next_ms=float(np.median(self.next_ms)), longest_ms=max(self.next_ms),
      cache_bytes=row_bytes(caches) if caches else tree_bytes(self.session.state.memory), is_finite=self.is_finite)


def read_unit(
  arms: dict[str, Arm], prompt_T: np.ndarray, answer_T: np.ndarray, *, order: Sequence[str] = ARMS) -> Observation:
  """The observation of a unit under the arms of `order`, which read it in this order, token by token side by side.

  The tokens of the recorded answer are given to each arm as they are, whatever it would have written. An arm that fails
  has a reading with is_error; the quality is measured where both arms read all with finite logits.
  """
  readings, failed = _begin(arms, prompt_T, order)
  scores = []
  for token in answer_T.tolist():
    logs = {name: reading.log_probabilities() for name, reading in readings.items()}
    if len(logs) == len(ARMS):
      scores.append(_score(logs[CONTROL], logs[TREATMENT], token))
    for name, reading in list(readings.items()):
      _guarded(name, functools.partial(reading.step, token), readings, failed)
  finished = {name: reading.finish() for name, reading in readings.items()} | failed
  is_whole = len(readings) == len(ARMS) and all(reading.is_finite for reading in finished.values())
  return Observation(
    length=len(prompt_T), control=finished.get(CONTROL), treatment=finished.get(TREATMENT),
    quality=_quality(scores) if is_whole else None)


def ask_canary(
  arms: dict[str, Arm], prompt_T: np.ndarray, answer_T: np.ndarray, scored_T: np.ndarray) -> Observation:
  """Whether each arm finds what the prompt hides: every scored token of the answer is its most likely one.

  Given the right tokens before it; an arm is right in this sense exactly if it would write the answer greedily.
  """
  right = dict.fromkeys(ARMS, False)
  readings, _ = _begin(arms, prompt_T, ARMS)
  for name, reading in readings.items():
    is_right_T = []
    for token in answer_T.tolist():
      is_right_T.append(int(reading.log_probabilities().argmax()) == token)
      reading.step(token)
    right[name] = bool(np.array(is_right_T)[scored_T].all()) and reading.is_finite
  return Observation(canary=Canary(control=right[CONTROL], treatment=right[TREATMENT]))


def _begin(
  arms: dict[str, Arm], prompt_T: np.ndarray, order: Sequence[str]) -> tuple[dict[str, _Reading], dict[str, Reading]]:
  """(the arms that have read the prompt, the readings of those that failed)."""
  readings: dict[str, _Reading] = {}
  failed: dict[str, Reading] = {}
  for name in order:
    reading = _guarded(name, functools.partial(_Reading, arms[name], prompt_T), readings, failed)
    if reading is not None:
      readings[name] = reading
  return readings, failed


def _guarded(
  name: str, action: Callable[[], Any], readings: dict[str, _Reading], failed: dict[str, Reading]) -> Any:
  """What the device refuses, such as memory, is an error of the arm; a mistake in the code is none, and is raised."""
  try:
    return action()
  except jax.errors.JaxRuntimeError:
    readings.pop(name, None)
    failed[name] = Reading(is_error=True)
    return None


@jax.jit
def _log_probabilities(logits_BA: jax.Array, inject: jax.Array) -> jax.Array:
  log_BA, even = jax.nn.log_softmax(logits_BA.astype(jnp.float32)), 1 / logits_BA.shape[-1]
  mixed_BA = jnp.log(jnp.exp(-inject) * jnp.exp(log_BA) - jnp.expm1(-inject) * even)
  return jnp.where(inject > 0, mixed_BA, log_BA)


@jax.jit
def _compare(control_BA: jax.Array, treatment_BA: jax.Array, token: jax.Array) -> jax.Array:
  """Loss difference, divergence, and whether the most likely token is the same."""
  return jnp.stack([
    control_BA[0, token] - treatment_BA[0, token],
    (jnp.exp(control_BA) * (control_BA - treatment_BA)).sum(),
    (control_BA.argmax() == treatment_BA.argmax()).astype(jnp.float32)])


def _score(control_BA: jax.Array, treatment_BA: jax.Array, token: int) -> np.ndarray:
  return np.asarray(_compare(control_BA, treatment_BA, np.int32(token)), np.float64)


def _quality(scores: list[np.ndarray]) -> Quality:
  delta, kl, agreement = np.mean(scores, axis=0).tolist()
  return Quality(delta_nll=delta, kl=max(kl, 0.0), agreement=agreement, tokens=len(scores))

