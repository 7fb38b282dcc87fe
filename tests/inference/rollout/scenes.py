"""Small rollouts, and units to show them."""

from __future__ import annotations

import dataclasses

import numpy as np

from lattice_jax.inference.rollout.assignment import TREATMENT
from lattice_jax.inference.rollout.config import RolloutConfig
from lattice_jax.inference.rollout.observation import Canary, Observation, Quality, Reading
from lattice_jax.inference.rollout.units import Units

# wide margins, so that some forty units decide a stage
QUICK = RolloutConfig(
  stages=("replay", "shadow", "5", "50"), min_units=10, min_served=1, quality_rate=1.0, delta_margin=0.1,
  delta_low=-0.2, delta_high=0.5, agreement=0.85, canary_margin=0.2, purpose="reported")


def quick(**changes):
  return dataclasses.replace(QUICK, **changes)


def units(**changes):
  """One unit of one rollout, or of several if a change is longer; nothing is measured but what the changes say."""
  size = max([np.shape(value)[0] for value in changes.values() if np.ndim(value)], default=1)
  nothing_U, nothing_U2 = np.full(size, np.nan), np.full((size, 2), np.nan)
  defaults = {
    "rows_U": np.arange(size), "is_counted_U": np.ones(size, bool), "is_paired_U": np.ones(size, bool),
    "share_U": np.full(size, 0.5), "delta_U": nothing_U, "kl_U": nothing_U, "agreement_U": nothing_U,
    "canary_U": nothing_U, "error_U2": nothing_U2, "first_U2": nothing_U2, "next_U2": nothing_U2,
    "length_U": np.full(size, 100), "is_finite_U": np.ones(size, bool), "is_served_U": np.zeros(size, bool)}
  return Units(**{
    name: np.broadcast_to(np.asarray(changes[name] if name in changes else value), value.shape).copy()
    for name, value in defaults.items()})


def observe(rollout, name, *, delta=0.0, kl=0.01, agreement=0.99, times=1.0, error=False, finite=True, at=0.0):
  """Assigns and records a unit, with the arms and the quality that its assignment asks for. Returns the state."""
  assignment = rollout.assign(name)
  rollout_at = at
  return rollout.record(assignment, observation_of(
    assignment, delta=delta, kl=kl, agreement=agreement, times=times, error=error, finite=finite), at=rollout_at)


def observation_of(
  assignment, *, delta=0.0, kl=0.01, agreement=0.99, times=1.0, error=False, finite=True):
  jitter = 1 + (int.from_bytes(assignment.unit.encode()[-4:], "big") % 97) / 970
  control = Reading(first_ms=100 * jitter, next_ms=10 * jitter, longest_ms=20 * jitter, cache_bytes=1000)
  treatment = Reading(is_error=True) if error else Reading(
    first_ms=100 * times * jitter, next_ms=10 * times * jitter, cache_bytes=500, is_finite=finite)
  is_both, is_treated = assignment.is_compared, assignment.arm == TREATMENT
  return Observation(
    length=100, control=control if is_both or not is_treated else None,
    treatment=treatment if is_both or is_treated else None,
    quality=Quality(delta, kl, agreement, 8) if is_both and finite and not error else None)


def ask(rollout, name, *, control=True, treatment=True, at=0.0):
  return rollout.record(rollout.assign(name), Observation(canary=Canary(control, treatment)), at=at)


def drive(rollout, number, *, start=0, **unit):
  """Units with a canary each, until the rollout ends. Returns the states."""
  states = []
  for index in range(start, start + number):
    ask(rollout, f"canary {index}", at=float(index))
    states.append(observe(rollout, f"unit {index}", at=float(index), **unit))
    if states[-1].is_ended:
      break
  return states
