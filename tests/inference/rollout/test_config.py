"""A rollout's config: what it refuses, how the command line changes it, and its hash."""

from __future__ import annotations

import dataclasses

import pytest

from lattice_jax.inference.rollout.config import RolloutConfig, config_hash, with_changes


@pytest.mark.parametrize(("changes", "sentence"), [
  ({"alpha": 0.0}, "alpha=0.0 must lie in (0, 1)."),
  ({"agreement": 1.0}, "agreement=1.0 must lie in (0, 1)."),
  ({"min_units": 0}, "min_units=0 must be positive."),
  ({"stages": ()}, "stages=() must hold at least 1 name."),
  ({"stages": ("replay", "half")}, "stages names 'half'; a stage is replay, shadow or a percentage such as 5 or 0.25."),
  ({"stages": ("shadow", "replay")}, "stages=shadow,replay do not ascend; give replay, then shadow, then"),
  ({"stages": ("5", "1")}, "stages=5,1 do not ascend;"),
  ({"stages": ("0", "1")}, "stages=0,1 do not ascend;"),
  ({"stages": ("50", "101")}, "stages=50,101 do not ascend;"),
  ({"delta_low": 0.0}, "delta_low=0, delta_margin=0.02 and delta_high=1 must ascend,"),
  ({"delta_margin": 1.0}, "delta_low=-0.25, delta_margin=1 and delta_high=1 must ascend,"),
  ({"bucket_from": 9, "bucket_to": 8}, "bucket_to=8 is below bucket_from=9;"),
], ids=str)
def test_what_is_out_of_range_is_refused(changes, sentence):
  with pytest.raises(ValueError) as refused:
    RolloutConfig(**changes)
  assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(("change", "sentence"), [
  ("delta_margin", "a change of the rollout's config has the form field=value, as in delta_margin=0.05, not"),
  ("delta_margins=1", "unknown config field delta_margins; this section has salt,"),
  ("kl_run=x", "kl_run=x must be a whole number."),
], ids=str)
def test_a_change_that_is_none_is_one_sentence(change, sentence):
  with pytest.raises(ValueError) as refused:
    with_changes(RolloutConfig(), [change])
  assert str(refused.value).startswith(sentence)


def test_changes_have_the_type_of_their_field():
  config = with_changes(RolloutConfig(), ["stages=shadow,0.5,100", "delta_margin=0.05", "kl_run=2", "purpose=reported"])
  assert config.stages == ("shadow", "0.5", "100") and (config.delta_margin, config.kl_run) == (0.05, 2)
  assert [(stage.percent, stage.is_paired) for stage in config.plan] == [(0, True), (0.5, False), (100, True)]


def test_the_hash_depends_on_every_field_and_fact():
  config, facts = RolloutConfig(), {"model": "a"}
  hashes = {config_hash(config, facts), config_hash(config, {"model": "b"}), config_hash(config, {})}
  for field in dataclasses.fields(config):
    value, special = getattr(config, field.name), {
      "stages": ("1", "2"), "salt": "x", "latency": "first", "purpose": "reported", "min_seconds": 1.0}
    other = special[field.name] if field.name in special else value * 0.99 if isinstance(value, float) else value + 1
    hashes.add(config_hash(dataclasses.replace(config, **{field.name: other}), facts))
  assert len(hashes) == 3 + len(dataclasses.fields(config))
  assert config_hash(RolloutConfig(), {"model": "a"}) == config_hash(config, facts)
