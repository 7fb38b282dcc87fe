"""The files of a choice of windows: the profile, the log of every choice, and the errors on which they rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lattice_jax.evaluation.result_tables import write_text
from lattice_jax.inspect.windows.calibrate import Calibration, write_log
from lattice_jax.inspect.windows.choice import Step
from lattice_jax.memories.local.profile import LocalProfile, write_profile


def write_all(
  path: Path, profile: LocalProfile, steps: Sequence[Step], calibration: Calibration, facts: Mapping[str, Any],
) -> list[Path]:
  """Writes the profile to `path` and the others beside it; returns the paths."""
  paths = [path, path.with_suffix(".log.jsonl"), path.with_suffix(".errors.json")]
  path.parent.mkdir(parents=True, exist_ok=True)
  write_profile(path, profile)
  write_log(paths[1], steps, dict(facts))
  errors = {name: {
    field.removesuffix("_RH"): _rounded(getattr(each, field)) for field in ("mass_RH", "relative_RH", "square_RH")}
    for name, each in (("far", calibration.far), ("alone", calibration.alone))}
  content = {
    "facts": dict(facts), "rungs": profile.rungs[:len(calibration.far.mass_RH)], "error": _rounded(
      calibration.error_RLH), "layer_weight": _rounded(calibration.weight_L), "output": _rounded(calibration.whole_L)}
  write_text(paths[2], json.dumps(content | errors) + "\n")
  return paths


def _rounded(array: np.ndarray) -> list[Any]:
  """To four digits, as lists."""
  return [_rounded(part) if part.ndim else float(f"{part:.4g}") for part in np.asarray(array)]
