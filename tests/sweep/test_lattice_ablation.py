"""The ablations of Lattice: every shipped trial trains a valid model, of the size of the base, and differs from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import ablation_lattice
from lattice_jax.config_checks import parse_config
from lattice_jax.sweep.sweep_file import read_sweep
from tests.counting import parameters

ROOT = Path(__file__).parents[2]
VARIANTS = {
  value.rpartition(":")[2] for name in ("lattice_slots", "lattice_ablation", "lattice_rounds", "lattice_length")
  for value in read_sweep(ROOT / "configs" / "sweeps" / f"{name}.yaml").parameters[0].values}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_variant_has_the_parameters_data_and_updates_of_the_base(variant):
  base, config = (parse_config(ablation_lattice.get_config(name)) for name in ("base", variant))
  # attention has no slots to start from, 4 % of the parameters
  limit = 0.05 if variant in ("softmax", "hybrid") else 0.01
  assert abs(parameters(config.model) / parameters(base.model) - 1) < limit
  assert (config.data, config.optimizer, config.train, config.eval) == (
    base.data, base.optimizer, base.train, base.eval)
  assert variant in ("base", "slots64") or config.model != base.model
