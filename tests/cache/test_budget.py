"""Budgets: one number of tokens a partition from however they are given, lengths in closed form, refusals."""

from __future__ import annotations

import pytest

from lattice_jax.cache.budget import most_slots
from lattice_jax.cache.policies.full import FullConfig
from lattice_jax.cache.policies.snapkv import SnapKVConfig
from lattice_jax.cache.policies.window import WindowConfig
from lattice_jax.cache.policy import check_cache, make_policy
from lattice_jax.config import CacheConfig, ModelConfig
from lattice_jax.config_checks import default_config, parse_config


@pytest.mark.parametrize(("ratio", "lag", "keep"), [
  (0.5, 128, 64), (0.167, 128, 21), (0.167, 512, 85), (0.167, 1024, 171), (0.29, 100, 29), (1.0, 7, 7)])
def test_a_ratio_is_tokens_of_a_partition_rounded_down(ratio, lag, keep):
  assert make_policy(CacheConfig(policy="lagkv", ratio=ratio, lag=lag)).keep == keep


@pytest.mark.parametrize(("length", "lag", "keep", "want"), [
  (1024, 128, 64, 640), (4096, 128, 32, 1216), (4096, 1024, 171, 2390), (16384, 128, 16, 2272),
  (16384, 1024, 512, 9216), (271, 128, 64, 271), (272, 128, 64, 208), (3, 128, 64, 3)])
def test_lengths_are_those_of_the_formula(length, lag, keep, want):
  assert make_policy(CacheConfig(policy="lagkv", lag=lag, keep=keep)).length_after(length) == want


@pytest.mark.parametrize("tokens", [400, 1216, 1300, 4000])
def test_tokens_of_a_text_are_never_exceeded_and_hardly_missed(tokens):
  policy = make_policy(CacheConfig(policy="knorm", tokens=tokens, text_len=4096))
  partitions = (4096 - 16) // 128
  assert tokens - partitions < policy.length_after(4096) <= tokens


@pytest.mark.parametrize("call_len", [1, 5, 40])
def test_slots_suffice_for_every_call_and_are_hardly_more(call_len):
  sizes = {"sinks": 3, "lag": 8, "keep": 3}
  policy = make_policy(CacheConfig(policy="lagkv", call_len=call_len, **sizes))
  for longest in range(1, 150):
    needed = max(policy.length_after(before) + min(call_len, longest - before) for before in range(longest))
    slots = policy.num_slots(longest)
    assert needed <= slots == most_slots(longest, call_len=call_len, **sizes) <= needed + sizes["lag"] + call_len


@pytest.mark.parametrize(("fields", "message"), [
  ({}, "not none"),
  ({"keep": 4, "ratio": 0.5}, "keep=4 and model.cache.ratio=0.5"),
  ({"ratio": 0.001}, "keeps 0 tokens"),
  ({"keep": 129}, "at most all must stay"),
  ({"ratio": 1.5}, r"must lie in \[0, 1\]"),
  ({"keep": -1}, "must be 0 or more"),
  ({"tokens": 200, "text_len": 4096}, "at least 286 tokens"),
  ({"tokens": 200, "text_len": 100}, "nothing is dropped"),
  ({"policy": "window"}, "takes its size from"),
  ({"policy": "window", "tokens": 16}, "at least 17 tokens"),
  ({"policy": "window", "tokens": 40, "window": WindowConfig(window=3)}, "leave the other 0"),
  ({"policy": "window", "window": WindowConfig(9), "skip_layers": 2}, "compresses none; use lagkv, local, knorm"),
  ({"policy": "full", "full": FullConfig(records=("weights",))}, "known are mass, queries"),
  ({"policy": "snapkv", "keep": 4, "snapkv": SnapKVConfig(pool=4)}, "must be odd"),
])
def test_budgets_that_cannot_be_kept_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    check_cache(CacheConfig(**{"policy": "lagkv"} | fields))


def test_a_policy_without_a_cache_is_refused_and_the_default_is_the_full_cache():
  config = default_config()
  config.model.cache.update(policy="lagkv", keep=4)
  with pytest.raises(ValueError, match="has nothing to keep"):
    parse_config(config)
  config.model.pattern = ("vq", "attention")
  assert make_policy(parse_config(config).model.cache).keep == 4
  assert make_policy(ModelConfig().cache).length_after(10_000) == 10_000
