"""The sweeps that compare recurrences: the same memories, rates of the grid, other seeds; and what may be ablated."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import recurrences
from lattice_jax.config_checks import parse_config
from lattice_jax.sweep.sweep_file import read_sweep
from tests import counting

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"


def values_of(sweep):
  return {parameter.name: parameter.values for parameter in read_sweep(SWEEPS / f"{sweep}.yaml").parameters}


def variants_of(sweep):
  return [value.rpartition(":")[2] for value in values_of(sweep)["config"]]


def test_all_memories_are_compared_at_rates_of_the_grid_by_seeds_that_did_not_choose_them():
  grid, compared = values_of("recurrences_rates"), values_of("recurrences")
  assert variants_of("recurrences_rates") == variants_of("recurrences") == list(recurrences.MEMORIES)
  assert {name.removesuffix(",long") for name in variants_of("recurrences_long")} == set(recurrences.MEMORIES)
  assert not set(grid["config.train.seed"]) & set(compared["config.train.seed"])
  rates = {parse_config(recurrences.get_config(name)).optimizer.learning_rate for name in recurrences.MEMORIES}
  assert rates <= set(grid["config.optimizer.learning_rate"])


def test_an_ablation_changes_its_field_alone():
  for variant in variants_of("recurrences_ablation"):
    name, *ablations = variant.split(",")
    config, plain = (parse_config(recurrences.get_config(arg)) for arg in (variant, name))
    section = config.model.delta if "deltanet" in name else config.model.gated_linear
    assert (section.learned_start, section.unit_values) == ("start" in ablations, "unit_values" in ablations)
    assert config.optimizer == plain.optimizer and config.data == plain.data


def test_a_learned_start_is_taken_from_the_mlp():
  sizes = [
    counting.parameters(parse_config(recurrences.get_config(arg)).model)
    for arg in ("gated_deltanet", "gated_deltanet,start")]
  assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


def test_an_ablation_of_a_memory_that_would_not_change_is_refused():
  with pytest.raises(ValueError, match="start and unit_values would change nothing of 'lattice'; name one of linear, "):
    recurrences.get_config("start,returning,unit_values")


def test_a_long_run_sees_ten_million_bytes():
  config = parse_config(recurrences.get_config("long"))
  assert abs(config.train.steps * config.data.batch * config.data.update_len / 1e7 - 1) < 1e-3
