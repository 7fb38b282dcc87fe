"""What several rollouts observe at one time, as arrays: one rollout in production, a thousand in a simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lattice_jax.inference.rollout.assignment import TREATMENT, Assignment
from lattice_jax.inference.rollout.config import Stage
from lattice_jax.inference.rollout.observation import Observation, Reading

CONTROL_COLUMN, TREATMENT_COLUMN = 0, 1


@dataclass
class Units:
  """One unit of each of U rollouts. NaN where something was not measured; columns are control, treatment.

  rows_U: which rollouts, all different. is_counted_U: whether gates may count it, or only guardrails look at it.
  is_paired_U, share_U: whether both arms read it; else the chance with which it went to the treatment.
  canary_U: 1 if only the control was right, -1 if only the treatment was, else 0. error_U2: 0 or 1. is_finite_U: of the
  treatment. is_served_U: whether the treatment's answer was served.
  """

  rows_U: np.ndarray
  is_counted_U: np.ndarray
  is_paired_U: np.ndarray
  share_U: np.ndarray
  delta_U: np.ndarray
  kl_U: np.ndarray
  agreement_U: np.ndarray
  canary_U: np.ndarray
  error_U2: np.ndarray
  first_U2: np.ndarray
  next_U2: np.ndarray
  length_U: np.ndarray
  is_finite_U: np.ndarray
  is_served_U: np.ndarray


def unit_of(observation: Observation, assignment: Assignment, stage: Stage, *, is_counted: bool) -> Units:
  """The observation of one rollout.

  Of a stage that serves a part of the units, errors and times of the arm that served count alone: that a unit was also
  read by the other arm depends on its name, but how busy the machine was then does not.
  """
  arms = [observation.control, observation.treatment]
  finite = observation.treatment is None or observation.treatment.is_finite
  if not stage.is_paired:
    arms[CONTROL_COLUMN if assignment.arm == TREATMENT else TREATMENT_COLUMN] = None
  quality, canary = observation.quality, observation.canary
  return Units(
    rows_U=np.zeros(1, np.int64), is_counted_U=np.array([is_counted]), is_paired_U=np.array([stage.is_paired]),
    share_U=np.array([0.5 if stage.is_paired else stage.percent / 100]),
    delta_U=_one(quality and quality.delta_nll), kl_U=_one(quality and quality.kl),
    agreement_U=_one(quality and quality.agreement),
    canary_U=_one(canary and float(canary.control) - float(canary.treatment)),
    error_U2=np.array([[np.nan if arm is None else float(arm.is_error or not arm.is_finite) for arm in arms]]),
    first_U2=_times(arms, "first_ms"), next_U2=_times(arms, "next_ms"), length_U=np.array([observation.length]),
    is_finite_U=np.array([finite]),
    is_served_U=np.array([assignment.arm == TREATMENT and observation.canary is None]))


def _one(value: float | None) -> np.ndarray:
  return np.array([np.nan if value is None else value], np.float64)


def _times(arms: list[Reading | None], name: str) -> np.ndarray:
  return np.array([[
    np.nan if arm is None or arm.is_error or getattr(arm, name) is None else getattr(arm, name) for arm in arms]],
    np.float64)
