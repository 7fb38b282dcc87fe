"""Fields of the cache: shared ones, those of one policy, and configs that were stored before policies had sections."""

from __future__ import annotations

import dataclasses

import pytest

from lattice_jax.cache.config import CacheConfig, own_fields
from lattice_jax.cache.policies.lagkv import SpreadConfig
from lattice_jax.cache.policies.registry import NAMES, POLICIES
from lattice_jax.cache.policies.snapkv import SnapKVConfig
from lattice_jax.config import Config, ModelConfig
from lattice_jax.config_checks import parse_config, to_dict
from lattice_jax.evaluation.caches import parse_caches, with_peers
from lattice_jax.stored_config import upgrade

CONFIG = Config(model=ModelConfig(pattern=("attention",)))


def test_every_policy_with_fields_of_its_own_has_a_section_and_no_field_has_two_homes():
  shared = {field.name for field in dataclasses.fields(CacheConfig)} - set(NAMES)
  for name in NAMES:
    section = POLICIES[name].section
    assert CacheConfig(policy=name).own == (section() if section else None)
    assert not own_fields(name) & shared


def test_the_short_form_finds_the_fields_of_its_policy_first():
  caches = parse_caches(
    CONFIG, ["snapkv:observe=64,keep=4", "window:window=7,sinks=2", "local:value_weight=0.5,keep=4"])
  assert caches["snapkv:observe=64,keep=4"].snapkv == SnapKVConfig(observe=64)
  assert caches["window:window=7,sinks=2"].window.window == 7
  local = caches["local:value_weight=0.5,keep=4"]
  assert (local.local, local.lagkv) == (SpreadConfig(value_weight=0.5), SpreadConfig())
  with pytest.raises(ValueError, match=r"unknown config field model\.cache\.observe; this section has policy, sinks"):
    parse_caches(CONFIG, ["lagkv:observe=64,keep=4"])


def test_a_peer_takes_over_what_both_policies_call_the_same():
  caches = parse_caches(CONFIG, ["lagkv:value_weight=0.25,lag=8,keep=4"])
  beside = with_peers(caches, ["local", "knorm"], 100)
  assert beside["local like lagkv:value_weight=0.25,lag=8,keep=4"].local == SpreadConfig(value_weight=0.25)


def test_a_config_that_was_stored_before_has_its_fields_in_the_policies_sections():
  before = to_dict(CONFIG)
  before["model"]["cache"] = {
    "policy": "window", "sinks": 2, "window": 9, "lag": 64, "observe": 4, "pool": 3, "value_weight": 0.5,
    "epsilon": 0.1, "seed": 5, "records": ["queries"]}
  cache = parse_config(upgrade(before)).model.cache
  assert (cache.policy, cache.sinks, cache.lag, cache.window.window, cache.random.seed) == ("window", 2, 64, 9, 5)
  assert cache.snapkv == SnapKVConfig(observe=4, pool=3) and cache.lagkv == cache.local == SpreadConfig(0.5, 0.1)
  assert (cache.full.observe, cache.full.records) == (4, ("queries",))
  assert upgrade(upgrade(before)) == upgrade(before)
