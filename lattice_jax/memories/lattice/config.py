"""Fields of Lattice, `model.lattice`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lattice_jax.fields import at_least, choice, positive, switch
from lattice_jax.memories.recurrent_config import RecurrentConfig
from lattice_jax.memories.section import Section

OBJECTIVES = ("decoding", "encoding", "similarity")
STATES = ("retracted", "accumulated", "returning")
FORMS = ("scan", "parallel", "live", "frozen", "additive")


@dataclass(frozen=True)
class LatticeConfig(RecurrentConfig):
  """Lattice (arXiv 2504.05646): `slots` unit vectors a head, also the width of queries and keys."""

  slots: int = positive(32, "m of the paper")
  objective: str = choice("decoding", OBJECTIVES, "the loss of which a token takes one gradient step")
  state: str = choice(
    "retracted", STATES, "retracted: slots keep length one; accumulated: lengths grow, which slows slots down; "
    "returning: length one, and what the forget gate takes off is filled up with the slots of the start")
  projected: bool = switch(True, "False writes what lies along a slot too: no longer the gradient, an ablation")
  max_step: float = positive(
    1.0, "of the gradient step, whose share of it each token and head chooses; 2 at most, 1 with forget unless "
    "slots return")
  forget: bool = switch(False, "a gate that each token and head takes off the slots before the step")
  unit_values: bool = switch(True, "values of length one, as queries and keys")
  form: str = choice(
    "scan", FORMS, "scan, parallel: exact; live, frozen, additive: steps from the slots at a chunk's start")
  chunk_len: int = positive(16, "of the forms other than scan")
  rounds: int = at_least(0, 16, "of \"parallel\", at most")
  tolerance: float = at_least(0, 1e-6, "of \"parallel\": rounds end once they change less; 0 runs them all")


def check(config: LatticeConfig) -> None:
  """Raises ValueError where fields contradict one another."""
  if config.objective == "encoding" and not config.unit_values:
    raise ValueError(
      "model.lattice.objective='encoding' is unstable for long values; set model.lattice.unit_values=True.")
  if config.state != "retracted" and config.form != "scan":
    raise ValueError(
      f"model.lattice.form={config.form!r} is one of model.lattice.state='retracted', not of {config.state!r}; use "
      "state='retracted', or form='scan'.")
  if config.state == "returning" and not config.forget:
    raise ValueError(
      "model.lattice.state='returning' needs the gate by which slots go back; set model.lattice.forget=True, or "
      "use state='retracted'.")
  # The gate may halve a slot, which doubles the step.
  times = 2 if config.forget and config.state != "returning" else 1
  longest, given = config.max_step * times, f"max_step={config.max_step} and forget={config.forget}"
  if longest > 2:
    raise ValueError(
      f"model.lattice: {given} allow steps of {longest:g}, which overshoot without end; use max_step={2 / times}.")
  if config.form == "parallel" and longest > 1:
    raise ValueError(
      f"model.lattice.form='parallel' is exact for steps of at most 1, and {given} allow {longest:g}; "
      f"use max_step={1 / times}, or form='scan'.")


def _smoke(config: Any) -> dict[str, Any]:
  return {"heads": min(4, config.heads), "slots": 16, "value_dim": 16, "chunk_len": 8}


SECTION = Section("lattice", LatticeConfig, "the memory \"lattice\"", _smoke)
