"""The ablations of Transformer-VQ: every shipped trial trains a valid model, and differs in one thing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs import ablation_vq
from lattice_jax.config_checks import parse_config
from lattice_jax.data.sources import load_source
from lattice_jax.sweep.sweep_file import read_sweep
from tests.counting import parameters

ROOT = Path(__file__).parents[2]
VARIANTS = {
  value.rpartition(":")[2] for name in ("vq_ablation", "vq_blocks")
  for value in read_sweep(ROOT / "configs" / "sweeps" / f"{name}.yaml").parameters[0].values}


@pytest.mark.parametrize("name", ["vq_ablation", "vq_blocks"])
def test_the_metric_is_one_that_the_data_has(name):
  source = load_source(parse_config(ablation_vq.get_config()).data, "validation")
  sweep = read_sweep(ROOT / "configs" / "sweeps" / f"{name}.yaml")
  assert sweep.metric == f"eval_validation_cold/bits_per_{source.unit}"


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_a_variant_has_the_parameters_data_and_updates_of_the_base(variant):
  base, config = parse_config(ablation_vq.get_config("base")), parse_config(ablation_vq.get_config(variant))
  assert abs(parameters(config.model) / parameters(base.model) - 1) < 0.05
  assert (config.data, config.optimizer, config.train, config.eval) == (
    base.data, base.optimizer, base.train, base.eval)
  assert variant == "base" or config.model != base.model


def test_sequences_hold_many_windows_and_an_update_is_one():
  config = parse_config(ablation_vq.get_config())
  assert config.data.update_len == config.data.seq_len >= 8 * config.model.vq.reach


def test_variants_combine():
  combined = parse_config(ablation_vq.get_config("revive,codes512")).model.vq
  base = parse_config(ablation_vq.get_config()).model.vq
  assert combined == dataclasses.replace(base, revive_below=0.1, codes=512)
